"""Layers of the sandbox: limits that a process puts on itself.

Each function adds one layer and returns whether the system offers it; the worker reports missing layers, and its parent
warns. The worker loads this file by its path: it uses the standard library only.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_FILE_BYTES = 1 << 20
MAX_OPEN_FILES = 64

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_EPERM = 1

# Numbers above 423 are the same on both machines.
_COMMON_CALLS = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
}  # fmt: skip
# Calls that make processes, signals, sockets and mounts; that make what outlives the process (System V memory, message
# queues); that reach other processes (their priority, their memory); and prctl, which could undo die_with_parent().
_X86_64_CALLS = {
    "shmget": 29, "socket": 41, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62,
    "semget": 64, "msgget": 68, "ptrace": 101, "rt_sigqueueinfo": 129, "setpriority": 141, "sched_setparam": 142,
    "sched_setscheduler": 144, "pivot_root": 155, "prctl": 157, "setrlimit": 160, "chroot": 161, "mount": 165,
    "umount2": 166, "tkill": 200, "sched_setaffinity": 203, "tgkill": 234, "mq_open": 240, "add_key": 248,
    "request_key": 249, "keyctl": 250, "ioprio_set": 251, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
    "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302, "open_by_handle_at": 304, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "sched_setattr": 314, "bpf": 321, "execveat": 322,
    "userfaultfd": 323,
}  # fmt: skip
_AARCH64_CALLS = {
    "ioprio_set": 30, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97, "ptrace": 117,
    "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "kill": 129, "tkill": 130,
    "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140, "setrlimit": 164, "prctl": 167, "mq_open": 180,
    "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199, "add_key": 217,
    "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221, "migrate_pages": 238, "move_pages": 239,
    "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261, "open_by_handle_at": 265, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "sched_setattr": 274, "bpf": 280, "execveat": 281,
    "userfaultfd": 282,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, 72, _X86_64_CALLS), "aarch64": (0xC00000B7, 25, _AARCH64_CALLS)}
"""For each machine: its name in filters, the number of fcntl, and the calls to refuse."""
_OWNER_COMMANDS = (8, 10, 15)
"""fcntl's F_SETOWN, F_SETSIG and F_SETOWN_EX: they make the kernel send any signal to any process."""
_CAPABILITY_VERSION = 0x20080522


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def leave_network() -> bool:
    """Move this process into its own user and network namespaces, with no interface up.

    The user namespace also keeps ``/proc/<pid>/environ`` of the processes outside from being read.

    Returns:
        ``True`` if the system allows it (Linux with user namespaces; many containers refuse).
    """
    if sys.platform != "linux":
        return False
    return bool(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def drop_capabilities() -> bool:
    """Give up all privileges of root, including those in an own user namespace.

    Returns:
        ``True`` if none is left (Linux).
    """
    if sys.platform != "linux":
        return False
    return bool(_libc().capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)) == 0)


def limit_resources(memory_mb: int, cpu_s: int) -> list[str]:
    """Set hard limits: address space, processor seconds, file size, open files, new processes, core dumps.

    Linux does not apply the limit on processes to root; :func:`filter_system_calls` does.

    Args:
        memory_mb: Address space in MiB.
        cpu_s: Processor time in seconds.

    Returns:
        Names of the limits that this system refuses to set; macOS refuses the address space.
    """
    import resource  # absent on Windows, where the parent refuses before

    limits = {
        "RLIMIT_AS": memory_mb << 20,
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_FSIZE": MAX_FILE_BYTES,
        "RLIMIT_NOFILE": MAX_OPEN_FILES,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    refused = []
    for name, wanted in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            refused.append(name)
    return refused


def filter_system_calls() -> bool:
    """Make the kernel refuse sockets, new processes and threads, programs, signals, mounts and tracing (seccomp).

    Returns:
        ``True`` if the filter is in force (Linux on x86-64 or ARM64, unless the container forbids it).
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return False
    architecture, fcntl, calls = machine
    numbers = sorted({*calls.values(), *_COMMON_CALLS.values()})
    program = _refusing_program(architecture, numbers, fcntl)
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0)


def _refusing_program(architecture: int, numbers: list[int], fcntl: int) -> bytes:
    """Make a BPF program that answers EPERM to the given system calls and to those of any other architecture.

    Of ``fcntl``, it refuses the commands that direct signals.
    """
    load, jump_equal, jump_at_least, give_back = 0x20, 0x15, 0x35, 0x06
    refuse, allow = 0x00050000 | _EPERM, 0x7FFF0000
    foreign_numbering = 0x40000000  # x32: the same kernel under other numbers
    at_number, at_architecture, at_second_argument = 0, 4, 24
    # Each line: operation, target if it holds, target if not (None: the next line), operand.
    lines: list[tuple[int, str | None, str | None, int]] = [
        (load, None, None, at_architecture),
        (jump_equal, None, "refuse", architecture),
        (load, None, None, at_number),
        (jump_at_least, "refuse", None, foreign_numbering),
        *((jump_equal, "refuse", None, number) for number in numbers),
        (jump_equal, None, "allow", fcntl),
        (load, None, None, at_second_argument),
        *((jump_equal, "refuse", None, command) for command in _OWNER_COMMANDS),
    ]
    ends = {"allow": len(lines), "refuse": len(lines) + 1}

    def skipped(place: int, end: str | None) -> int:
        return 0 if end is None else ends[end] - place - 1

    jumps = [
        (code, skipped(place, yes), skipped(place, no), operand) for place, (code, yes, no, operand) in enumerate(lines)
    ]
    return b"".join(
        struct.pack("HBBI", *line) for line in [*jumps, (give_back, 0, 0, allow), (give_back, 0, 0, refuse)]
    )


_FORBIDDEN_EVENTS = (
    "socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile",
    "os.kill", "pty.", "signal.pthread_kill", "ftplib.", "http.", "imaplib.", "nntplib.", "poplib.", "smtplib.",
    "telnetlib.", "urllib.", "webbrowser.",
)  # fmt: skip
_CHANGING_EVENTS = frozenset(
    f"os.{verb}" for verb in (
        "remove", "rename", "rmdir", "mkdir", "chmod", "chown", "link", "symlink", "truncate", "utime", "setxattr",
        "removexattr", "lockf", "chflags",
    )
)  # fmt: skip
_LISTING_EVENTS = ("os.listdir", "os.scandir")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def python_files() -> tuple[str, ...]:
    """Return the files and folders that Python reads: its own, its packages', the time zones."""
    return (sys.prefix, sys.base_prefix, *filter(None, sys.path), "/usr/share/zoneinfo", "/etc/localtime")


def refuse_in_python(workdir: str) -> None:
    """Make Python refuse network, processes, changes outside ``workdir`` and reads outside Python's files.

    This is a second line behind the kernel's limits, which says in words what is refused, and the first line where
    those are missing. Native code evades it, and so can Python code: a snippet can replace the functions it relies on.

    Args:
        workdir: Only folder in which files may be changed.
    """
    own = os.path.realpath(workdir)
    sys.addaudithook(_make_hook(own, (own, *map(os.path.realpath, python_files()))))


def _make_hook(own: str, readable: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    def inside(path: Any, folders: tuple[str, ...]) -> bool:
        if isinstance(path, int):  # a descriptor that is open already
            return True
        real = os.path.realpath(os.fsdecode(path))
        return any(real == folder or real.startswith(folder + os.sep) for folder in folders)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS):
            raise PermissionError(f"{event} is not allowed in a tool")
        if event == "open" and arguments[0] is not None:
            writes = bool((arguments[2] or 0) & _WRITE_FLAGS)
            if not inside(arguments[0], (own,) if writes else readable):
                verb = "change" if writes else "read"
                raise PermissionError(f"a tool may not {verb} {os.fsdecode(arguments[0])}")
        if event in _LISTING_EVENTS and arguments[0] is not None and not inside(arguments[0], readable):
            raise PermissionError(f"a tool may not list {os.fsdecode(arguments[0])}")
        if event in _CHANGING_EVENTS:
            for path in arguments:
                if isinstance(path, str | bytes | os.PathLike) and not inside(path, (own,)):
                    raise PermissionError(f"a tool may not change {os.fsdecode(path)}")

    return hook

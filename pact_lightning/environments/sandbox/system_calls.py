"""Filter of system calls (seccomp): the kernel takes those named here from a call's process, and refuses all others.

An allow-list, so a call that a later kernel adds is refused too. It was found by measurement: what CPython's standard
library, NumPy, pandas, SciPy and SymPy make once the process is closed in. The worker loads this file by its path: it
uses the standard library only.
"""

import ctypes
import errno
import platform
import struct
import sys

Instruction = tuple[int, int, int, int]
"""One line of a filter: operation, lines to skip if it holds, lines to skip if not, operand."""

# Numbers on x86-64 and ARM64; ARM64 lacks the older of two calls with one purpose.
_ALLOWED: dict[str, tuple[int, int | None]] = {
    # Open files and memory.
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286),
    "pwritev2": (328, 287), "sendfile": (40, 71), "copy_file_range": (326, 285), "ftruncate": (77, 46),
    "fallocate": (285, 47), "fadvise64": (221, 223), "fsync": (74, 82), "fdatasync": (75, 83), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "close_range": (436, 436), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216), "msync": (26, 227), "madvise": (28, 233),
    # Files by name; Landlock decides which. None of these changes a mode, an owner, a time or an attribute.
    "creat": (85, None), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "umask": (95, 166),
    # Waiting, pipes, signals to itself by a clock.
    "pipe": (22, None), "pipe2": (293, 59), "select": (23, None), "pselect6": (270, 72), "poll": (7, None),
    "ppoll": (271, 73), "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None), "alarm": (37, None),
    "getitimer": (36, 102), "setitimer": (38, 103), "restart_syscall": (219, 128), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "futex": (202, 98), "sched_yield": (24, 124),
    # What it asks about time, itself and the machine.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160), "getpid": (39, 172),
    "getppid": (110, 173), "gettid": (186, 178), "getpgid": (121, 155), "getpgrp": (111, None), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getrlimit": (97, 163), "capget": (125, 90),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
# These depend on their arguments.
_OPEN, _OPENAT, _IOCTL, _FCNTL, _PRLIMIT = (2, None), (257, 56), (16, 29), (72, 25), (302, 261)

_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
"""Duplicates, flags and record locks. Not F_SETOWN, F_SETSIG (signals to any process), leases, notices, pipe sizes."""
_IOCTL_COMMANDS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not TIOCSTI, FIOSETOWN, FICLONE."""
_O_ACCMODE, _O_TRUNC = 3, 0o1000

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # x86-64 under other numbers
_OPENAT2 = 437  # its flags lie in memory, where no filter sees them: libraries then take openat
_FIRST_NEW = 450  # libraries that try a newer call than these expect ENOSYS, and take an older one

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_AT_NUMBER, _AT_ARCHITECTURE = 0, 4
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2

ALLOWED: Instruction = (_RETURN, 0, 0, 0x7FFF0000)
REFUSED: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
UNKNOWN: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)


def packed_filter() -> bytes | None:
    """Make this machine's filter ready for the kernel; ``None`` but on Linux on x86-64 and ARM64."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return None
    return b"".join(struct.pack("HBBI", *line) for line in filter_program(platform.machine()))


def filter_system_calls(program: bytes) -> bool:
    """Make the kernel refuse this process, for good, every system call but those of the list.

    Args:
        program: From :func:`packed_filter`.

    Returns:
        ``True`` if the filter is in force; some containers forbid it.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0) == 0)


def filter_program(machine: str) -> list[Instruction]:
    """Make the filter as lines of classic BPF.

    Args:
        machine: ``x86_64`` or ``aarch64``.

    Returns:
        Lines that end in :data:`ALLOWED`, :data:`REFUSED` (EPERM) or :data:`UNKNOWN` (ENOSYS).
    """
    architecture, column = _MACHINES[machine]
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        *_unless((_EQUAL, architecture), REFUSED),
        (_LOAD, 0, 0, _AT_NUMBER),
        *_if((_AT_LEAST, _X32), REFUSED),
        *_if((_AT_LEAST, _FIRST_NEW), UNKNOWN),
        *_if((_EQUAL, _OPENAT2), UNKNOWN),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            lines += _if((_EQUAL, number), ALLOWED)
    for numbers, check in (
        (_OPEN, _opens_plainly(1)),
        (_OPENAT, _opens_plainly(2)),
        (_IOCTL, _is_one_of(1, _IOCTL_COMMANDS)),
        (_FCNTL, _is_one_of(1, _FCNTL_COMMANDS)),
        (_PRLIMIT, _asks_own_limit()),
    ):
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, len(check), number), *check]
    return [*lines, REFUSED]


def _if(condition: tuple[int, int], answer: Instruction) -> list[Instruction]:
    return [(condition[0], 0, 1, condition[1]), answer]


def _unless(condition: tuple[int, int], answer: Instruction) -> list[Instruction]:
    return [(condition[0], 1, 0, condition[1]), answer]


def _argument(index: int, *, high: bool = False) -> Instruction:
    """Load half of an argument. Flags, commands and process ids are 32 bits wide in the kernel too."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _is_one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    return [_argument(index), *(line for value in values for line in _if((_EQUAL, value), ALLOWED)), REFUSED]


def _opens_plainly(index: int) -> list[Instruction]:
    """Refuse two ways to empty a file without a right to write it, which Landlock takes for reading before Linux 6.2.

    Both are undefined by POSIX: ``O_TRUNC`` with ``O_RDONLY``, and the access mode 3.
    """
    return [
        _argument(index),
        (_AND, 0, 0, _O_ACCMODE),
        *_if((_EQUAL, _O_ACCMODE), REFUSED),
        _argument(index),
        (_AND, 0, 0, _O_ACCMODE | _O_TRUNC),
        *_if((_EQUAL, _O_TRUNC), REFUSED),
        ALLOWED,
    ]


def _asks_own_limit() -> list[Instruction]:
    """Allow ``prlimit64(0, resource, NULL, old)``, which is how glibc reads a limit."""
    return [
        _argument(0),
        *_unless((_EQUAL, 0), REFUSED),
        _argument(2),
        *_unless((_EQUAL, 0), REFUSED),
        _argument(2, high=True),
        *_unless((_EQUAL, 0), REFUSED),
        ALLOWED,
    ]

"""The filter of system calls as a program: both machines' filters are run by a small interpreter of classic BPF."""

import re
from pathlib import Path

import pytest

from pact_lightning.environments.sandbox import system_calls
from pact_lightning.environments.sandbox.system_calls import ALLOWED, REFUSED, UNKNOWN, filter_program

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
CONDITIONAL = {
    "open": system_calls._OPEN,
    "openat": system_calls._OPENAT,
    "ioctl": system_calls._IOCTL,
    "fcntl": system_calls._FCNTL,
    "prlimit64": system_calls._PRLIMIT,
}
EPERM, ENOSYS = 1, 38
PROGRAMS = {machine: filter_program(machine) for machine in MACHINES}
REFUSED_NAMES = """
    chmod fchmod fchmodat chown lchown fchown fchownat utime utimes futimesat utimensat setxattr lsetxattr fsetxattr
    removexattr lremovexattr fremovexattr getxattr listxattr truncate mknod mknodat flock
    shmget shmat semget msgget mq_open mq_unlink inotify_init1 fanotify_init io_setup io_submit io_uring_setup
    io_uring_enter add_key request_key keyctl ptrace perf_event_open bpf userfaultfd memfd_create execve execveat
    socket socketpair connect bind sendto sendmsg clone clone3 fork vfork kill tkill tgkill rt_sigqueueinfo
    pidfd_open pidfd_getfd pidfd_send_signal process_vm_readv process_vm_writev process_madvise prctl seccomp
    unshare setns mount umount2
    move_mount open_tree fsopen mount_setattr pivot_root chroot name_to_handle_at open_by_handle_at setpriority
    sched_setaffinity sched_setscheduler setrlimit setuid setresuid setgroups capset personality setsid setpgid
    timer_create splice vmsplice tee swapon reboot init_module kexec_load acct syslog landlock_create_ruleset
"""
REFUSED_CALLS = REFUSED_NAMES.split()


def answer(machine, number, arguments=(), architecture=None):
    """Runs the filter on one system call."""
    lines = PROGRAMS[machine]
    data = {0: number, 4: architecture or MACHINES[machine]}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        data[16 + 8 * index], data[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    place = accumulator = 0
    while True:
        operation, yes, no, operand = lines[place]
        place += 1
        if operation == 0x20:
            accumulator = data[operand]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x06:
            return lines[place - 1]
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand}[operation]
            place += yes if holds else no


def numbers(machine):
    if not HEADERS[machine].is_file():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    table = {name: int(number) for name, number in found}
    if machine == "aarch64":  # 64-bit machines know these by other names
        table["newfstatat"] = table.pop("fstatat")
    return table


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine):
    table, column = numbers(machine), list(MACHINES).index(machine)
    for name, pair in (system_calls._ALLOWED | CONDITIONAL).items():
        assert pair[column] == table.get(name), name


@pytest.mark.parametrize("machine", MACHINES)
def test_all_that_is_not_named_is_refused(machine):
    table = numbers(machine)
    for name in REFUSED_CALLS:
        if name in table:
            assert answer(machine, table[name], (1, 1, 1, 1, 1, 1)) == REFUSED, name
    column = list(MACHINES).index(machine)
    pairs = [*system_calls._ALLOWED.values(), *(CONDITIONAL[name] for name in CONDITIONAL if name != "ioctl")]
    got = {number for number in range(600) if answer(machine, number, (0, 0, 0)) == ALLOWED}
    assert got == {pair[column] for pair in pairs} - {None}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_later_kernels_calls_are_unknown_so_libraries_take_older_ones(machine):
    assert {answer(machine, number) for number in (437, 450, 452, 463, 469, 1000)} == {UNKNOWN}
    assert UNKNOWN[3] & 0xFFFF == ENOSYS
    assert REFUSED[3] & 0xFFFF == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_other_numberings_are_refused(machine):
    foreign = {0x40000003, 0x40000028, *(a for m, a in MACHINES.items() if m != machine)}
    for architecture in foreign:
        for number in range(460):
            assert answer(machine, number, architecture=architecture) == REFUSED
    for number in (0, 1, 59, 90):  # x32: read, write, execve, chmod
        assert answer(machine, 0x40000000 + number) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_a_call_has_many_uses(machine):
    column = list(MACHINES).index(machine)
    openat, ioctl = system_calls._OPENAT[column], system_calls._IOCTL[column]
    fcntl, prlimit = system_calls._FCNTL[column], system_calls._PRLIMIT[column]
    for flags in (0, 1, 2, 0o101, 0o1101, 0o1002, 0o2001, 0o2000000, 0o10000000):
        assert answer(machine, openat, (0, 0, flags)) == ALLOWED, flags
    for flags in (0o1000, 0o1100, 3, 0o1003, 0o2000003, 0o2001000):
        assert answer(machine, openat, (0, 0, flags)) == REFUSED, flags
        if column == 0:
            assert answer(machine, 2, (0, flags)) == REFUSED
    assert answer(machine, ioctl, (0, 0x5401)) == ALLOWED
    # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP, FICLONE, FS_IOC_SETFLAGS
    for command in (0x5412, 0x541C, 0x8901, 0x8902, 0x40049409, 0x40086602):
        assert answer(machine, ioctl, (0, command)) == REFUSED
        assert answer(machine, ioctl, (0, command | 1 << 40)) == REFUSED
    for command in (1, 3, 6, 1030):
        assert answer(machine, fcntl, (0, command)) == ALLOWED
    for command in (8, 10, 15, 1024, 1026, 1031, 1033):  # owners and signals, leases, notices, pipe sizes, seals
        assert answer(machine, fcntl, (0, command)) == REFUSED
    assert answer(machine, prlimit, (0, 7, 0, 1)) == ALLOWED
    assert answer(machine, prlimit, (0, 7, 1, 0)) == REFUSED
    assert answer(machine, prlimit, (0, 7, 1 << 32, 0)) == REFUSED
    assert answer(machine, prlimit, (77, 7, 0, 1)) == REFUSED

"""Limits of a call's process that need no files and no filter: resources, privileges, its parent's end.

The worker loads this file by its path: it uses the standard library only.
"""

import ctypes
import signal
import struct
import sys

NETWORK, OWN_FILES, FILE_RULES = "network namespace", "file system of its own", "file rules (Landlock)"
PRIVILEGES, FILTER = "dropped privileges", "system-call filter"
RESOURCES = (
    "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CORE", "RLIMIT_MSGQUEUE",
)  # fmt: skip
LAYERS = (NETWORK, OWN_FILES, FILE_RULES, PRIVILEGES, FILTER, *RESOURCES)
"""Names of the layers, as the warning about missing ones gives them."""

MAX_FILE_BYTES = 1 << 20
MAX_OPEN_FILES = 64

_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION = 0x20080522


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def drop_capabilities() -> bool:
    """Give up all privileges of root, including those in an own user namespace.

    Returns:
        ``True`` if none is left (Linux).
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)) == 0)


def limit_resources(memory_mb: int, cpu_s: int) -> list[str]:
    """Set hard limits: address space, processor seconds, file size, open files, new processes, core dumps, queues.

    Linux does not apply the limit on processes to root; the filter of system calls does.

    Args:
        memory_mb: Address space in MiB.
        cpu_s: Processor time in seconds.

    Returns:
        Names of the limits that this system refuses to set; macOS refuses the address space.
    """
    import resource  # absent on Windows, where the parent refuses before

    values = (memory_mb << 20, cpu_s, MAX_FILE_BYTES, MAX_OPEN_FILES, 0, 0, 0)
    refused = []
    for name, wanted in zip(RESOURCES, values, strict=True):
        kind = getattr(resource, name, None)
        if kind is None:  # Linux alone has queues' limit
            continue
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            refused.append(name)
    return refused

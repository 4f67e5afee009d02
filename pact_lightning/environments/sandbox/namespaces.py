"""Namespaces of the sandbox (Linux): a network, System V objects and a file system of its own.

They need no privileges where unprivileged user namespaces are allowed; many containers refuse them. The worker loads
this file by its path: it uses the standard library only.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

MAX_FOLDER_BYTES = 64 << 20
MAX_FOLDER_ENTRIES = 4096

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000  # the same number on every architecture
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4


def own_namespaces() -> bool:
    """Move this process into its own user, network and IPC namespaces, with no network interface up.

    Its user and group keep their numbers. The user namespace also keeps ``/proc/<pid>/environ`` of the processes
    outside from being read, and gives the privileges that :func:`own_files` needs.

    Returns:
        ``True`` if the system allows it.
    """
    if sys.platform != "linux":
        return False
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEWUSER | _NEWNET | _NEWIPC) != 0:
        return bool(libc.unshare(_NEWNET | _NEWIPC) == 0)  # root may where user namespaces are switched off
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:  # without its numbers it could make no file in a file system of its own
        return False
    return True


def own_files(folder: str) -> bool:
    """Give this process a file system of its own: an empty ``folder`` in memory, and all else read-only.

    The folder holds :data:`MAX_FOLDER_BYTES` in :data:`MAX_FOLDER_ENTRIES` entries, and ends with the process.

    Args:
        folder: An empty folder.

    Returns:
        ``True`` if the system allows it (Linux 5.12, with :func:`own_namespaces` or as root).
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    place = os.fsencode(folder)
    size = f"size={MAX_FOLDER_BYTES},nr_inodes={MAX_FOLDER_ENTRIES},mode=700".encode()
    return bool(
        libc.unshare(_NEWNS | _NEWIPC) == 0
        # Root's mounts would show outside; a user namespace's do not.
        and libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) == 0
        and libc.mount(b"tmpfs", place, b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), size) == 0
        and _set_attributes(libc, b"/", _AT_RECURSIVE, _READ_ONLY | _NO_SETUID | _NO_DEVICES, 0)
        and _set_attributes(libc, place, 0, 0, _READ_ONLY)
    )


def _set_attributes(libc: ctypes.CDLL, place: bytes, flags: int, attributes: int, cleared: int) -> bool:
    request = struct.pack("=QQQQ", attributes, cleared, 0, 0)
    return bool(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, place, flags, request, ctypes.c_size_t(len(request))) == 0)

"""File rules of the sandbox's folder, enforced by the kernel (Landlock), and its cleaning.

Landlock needs no privileges: a process gives up for good, for itself and its children, access to files. It binds native
code as well as Python. The worker loads this file by its path: it uses the standard library only.
"""

import ctypes
import os
import secrets
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

SYSTEM_LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache",
)  # fmt: skip
"""Paths that loading a shared library reads, in addition to Python's own folders."""

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_CHANGES = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files, by the first interface version that knows them."""
_TCP_SINCE, _TCP_RIGHTS = 4, 3
_MOVED = secrets.token_hex(8)
_SCOPES_SINCE, _SCOPES = 6, 3  # abstract Unix sockets and signals, to processes outside


def restrict_files(workdir: str, readable: Iterable[str]) -> bool:
    """Let this process change files below ``workdir`` only, and read there and below ``readable`` only.

    If the kernel's version allows, TCP and signals to processes outside are refused as well.

    Args:
        workdir: Only folder whose files may be changed.
        readable: Files and folders that may be read; missing ones are skipped.

    Returns:
        ``True`` if the kernel enforces it (Linux from 5.13 on, unless Landlock is switched off).
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    handled = max(rights for since, rights in _FILE_RIGHTS.items() if version >= since)
    attributes = struct.pack(
        "=QQQ", handled, _TCP_RIGHTS if version >= _TCP_SINCE else 0, _SCOPES if version >= _SCOPES_SINCE else 0
    )
    # An older kernel takes no longer a structure than it knows, unless the rest is zero.
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(libc, ruleset, path, (_READ_FILE | _READ_DIR) & handled)
        _allow(libc, ruleset, workdir, (_READ_FILE | _READ_DIR | _CHANGES) & handled)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, so nothing to allow
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def empty_folder(folder: str) -> None:
    """Remove everything in a folder, including closed folders and folders thousands of levels deep.

    ``shutil.rmtree`` recurses, and a path's length is limited: deep folders are moved up instead.

    Raises:
        OSError: Something cannot be removed.
    """
    top = Path(folder)
    top.chmod(stat.S_IRWXU)
    number = 0
    while entries := list(top.iterdir()):
        for entry in entries:
            for folder_inside in _files_removed(entry):
                number += 1
                folder_inside.rename(top / f"{_MOVED}{number}")
            if _is_folder(entry):
                entry.rmdir()


def _files_removed(entry: Path) -> list[Path]:
    """Remove a file, or the files directly in a folder; open the folders in it and return them."""
    if not _is_folder(entry):
        entry.unlink()
        return []
    entry.chmod(stat.S_IRWXU)
    folders = []
    for inner in list(entry.iterdir()):
        if _is_folder(inner):
            inner.chmod(stat.S_IRWXU)  # a closed folder cannot be moved: its ".." changes
            folders.append(inner)
        else:
            inner.unlink()
    return folders


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()

"""File rules of the sandbox, enforced by the kernel (Landlock), and the removal of what a call leaves.

Landlock needs no privileges: a process gives up for good, for itself and its children, access to files. It binds native
code as well as Python. The worker loads this file by its path: it uses the standard library only.
"""

import ctypes
import os
import stat
import struct
import sys
import time
from collections.abc import Iterable

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
_SCOPES_SINCE, _SCOPES = 6, 3  # abstract Unix sockets and signals, to processes outside

ADDITIONS = {
    3: "file rules against truncation (Landlock 3, Linux 6.2)",
    4: "file rules' refusal of TCP (Landlock 4, Linux 6.7)",
    5: "file rules for devices (Landlock 5, Linux 6.10)",
    6: "file rules' refusal of signals and abstract Unix sockets (Landlock 6, Linux 6.12)",
}
"""What an interface version adds; the filter of system calls refuses all of it as well."""


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 where there is none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    version = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(int(version), 0)


def make_file_rules(changeable: str, readable: Iterable[str], listed: Iterable[str], version: int) -> int | None:
    """Make rules by which a process may change files below one folder only, and read there and in ``readable`` only.

    If the version allows, they refuse TCP and signals to processes outside as well.

    Args:
        changeable: Only folder whose files may be changed.
        readable: Files and folders that may be read; missing ones are skipped.
        listed: Folders in which names may be listed, below them too.
        version: Interface version, at most the kernel's.

    Returns:
        A descriptor for :func:`restrict_files`, or ``None`` if the kernel refuses.
    """
    if version < 1:
        return None
    libc = ctypes.CDLL(None)
    handled = max(rights for since, rights in _FILE_RIGHTS.items() if version >= since)
    attributes = struct.pack(
        "=QQQ", handled, _TCP_RIGHTS if version >= _TCP_SINCE else 0, _SCOPES if version >= _SCOPES_SINCE else 0
    )
    # An older kernel takes no longer a structure than it knows, unless the rest is zero.
    rules = int(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    if rules < 0:
        return None
    for path in listed:
        _allow(libc, rules, path, _READ_DIR)
    for path in readable:
        _allow(libc, rules, path, (_READ_FILE | _READ_DIR) & handled)
    _allow(libc, rules, changeable, (_READ_FILE | _READ_DIR | _CHANGES) & handled)
    return rules


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, so nothing to allow
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def restrict_files(rules: int) -> bool:
    """Put this process under rules for good.

    Returns:
        ``True`` if the kernel enforces them.
    """
    libc = ctypes.CDLL(None)
    return bool(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT_SELF, rules, 0) == 0)


def remove_folder(folder: str, within_s: float = float("inf")) -> None:
    """Remove a folder with all that is in it, closed folders and folders thousands of levels deep included.

    The time grows with the number of entries only. ``shutil.rmtree`` recurses, and a path's length is limited: this
    goes down and up by descriptors. Nobody else may be at work in the folder.

    Args:
        folder: The folder.
        within_s: Time limit in seconds.

    Raises:
        OSError: Something cannot be removed; :class:`TimeoutError` where the time did not suffice.
    """
    deadline = time.monotonic() + within_s
    os.chmod(folder, stat.S_IRWXU)  # noqa: PTH101 - a path is a descriptor's neighbour here
    here = _opened(folder)
    try:
        folders = [_without_files(here, deadline)]
        names: list[str] = []
        while folders:
            if folders[-1]:
                names.append(folders[-1].pop())
                os.chmod(names[-1], stat.S_IRWXU, dir_fd=here)
                here = _moved(here, names[-1])
                folders.append(_without_files(here, deadline))
            else:
                folders.pop()
                if names:
                    here = _moved(here, "..")
                    os.rmdir(names.pop(), dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(folder)  # noqa: PTH106


def _opened(name: str, inside: int | None = None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)


def _moved(here: int, name: str) -> int:
    there = _opened(name, here)
    os.close(here)
    return there


def _without_files(here: int, deadline: float) -> list[str]:
    """Remove the files and the empty folders in a folder; return the names of the others."""
    left = []
    with os.scandir(here) as entries:
        for entry in list(entries):
            if time.monotonic() > deadline:
                raise TimeoutError("there is too much in it")
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=here)
                continue
            try:
                os.rmdir(entry.name, dir_fd=here)
            except OSError:  # it is not empty
                left.append(entry.name)
    return left


if __name__ == "__main__":  # what a worker's end has no time for
    remove_folder(sys.argv[1])

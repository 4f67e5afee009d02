"""Refusals in Python's own words (an audit hook): the layer that explains, behind the kernel's layers that hold.

The worker loads this file by its path: it uses the standard library only.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

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


def make_hook(workdir: str, readable: Iterable[str], listed: Iterable[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Make an audit hook that refuses network, processes, changes outside ``workdir`` and reads outside ``readable``.

    This is a second line behind the kernel's limits, which says in words what is refused, and the first line where
    those are missing. Native code evades it, and so can Python code: a snippet can replace the functions it relies on.

    Args:
        workdir: Only folder in which files may be changed.
        readable: Files and folders that may be read besides; real paths.
        listed: Folders whose names may be listed, without what is below them; real paths.

    Returns:
        A hook for ``sys.addaudithook``.
    """
    own = frozenset([os.path.realpath(workdir)])
    read, names = own | frozenset(readable), frozenset(listed)

    def inside(path: Any, folders: frozenset[str]) -> bool:
        if isinstance(path, int):  # a descriptor that is open already
            return True
        real = os.path.realpath(os.fsdecode(path))
        while real not in folders:
            above = os.path.dirname(real)  # noqa: PTH120
            if above == real:
                return False
            real = above
        return True

    def may_list(path: Any) -> bool:
        return inside(path, read) or os.path.realpath(os.fsdecode(path)) in names

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS):
            raise PermissionError(f"{event} is not allowed in a tool")
        if event == "open" and arguments[0] is not None:
            writes = bool((arguments[2] or 0) & _WRITE_FLAGS)
            if not inside(arguments[0], own if writes else read):
                verb = "change" if writes else "read"
                raise PermissionError(f"a tool may not {verb} {os.fsdecode(arguments[0])}")
        if event in _LISTING_EVENTS and arguments[0] is not None and not may_list(arguments[0]):
            raise PermissionError(f"a tool may not list {os.fsdecode(arguments[0])}")
        if event in _CHANGING_EVENTS:
            for path in arguments:
                if isinstance(path, str | bytes | os.PathLike) and not inside(path, own):
                    raise PermissionError(f"a tool may not change {os.fsdecode(path)}")

    return hook

"""Lock of a run's folder: two runs in one folder would mix their checkpoints and metrics."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

_held: dict[Path, int] = {}
"""Descriptors of the locks of this process, by path. A lock of POSIX ends with its process, however that ends."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


def hold(folder: Path) -> None:
    """Hold the folder of a run until :func:`release` or the end of this process; once more is no mistake.

    The system keeps the lock, not the file: what a killed process leaves behind locks nothing. The file tells others
    who holds it. On a file system without locks the holder is asked for, as far as it runs on this machine [D].

    Args:
        folder: The folder; it need not exist.

    Raises:
        BlockingIOError: Another process holds it; the sentence names process and host.
        OSError: The folder cannot be written.
    """
    path = _lock_of(folder)
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED or _runs_here(holder):
                raise BlockingIOError(_refusal(folder, holder)) from error
            descriptor = os.open(path, os.O_RDWR)
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its holder has just removed it
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    _held[path] = descriptor


def release(folder: Path) -> None:
    """Let the folder go, if this process holds it."""
    path = _lock_of(folder)
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    """Name the lock's file: beside the folder, which need not exist, or in it where that is no place of the run's."""
    folder = folder.absolute()
    closed = folder.parent.exists() and not os.access(folder.parent, os.W_OK)
    if closed or folder == Path.cwd():
        return folder / ".run.lock"
    return folder.with_name(f"{folder.name}.lock")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, object]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # it has just been made
        return {}
    return holder if isinstance(holder, dict) else {}


def _runs_here(holder: dict[str, object]) -> bool:
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _refusal(folder: Path, holder: dict[str, object]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder.get('process')} on host {holder.get('host')}, since {holder.get('since')}"
    return (
        f"the folder {folder} is in use by a run ({who}), and two runs must not share it; wait for that run or "
        "stop it, or give this run its own folder, for example with --name"
    )

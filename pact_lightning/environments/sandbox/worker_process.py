"""Worker as its parent sees it: a process that forks one child per call, and the pipes to that child.

The parent sends a call to the child itself and reads its answer, within the call's time. The worker, of which every
child is a copy, sees neither.
"""

import json
import logging
import math
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_lightning.environments.sandbox.answers import is_whole, missing_layers, unpack
from pact_lightning.environments.sandbox.files import ADDITIONS, remove_folder
from pact_lightning.environments.sandbox.libraries import readable_files
from pact_lightning.environments.sandbox.limits import LAYERS

_log = logging.getLogger(__name__)
_WORKER, _FILES = Path(__file__).with_name("worker.py"), Path(__file__).with_name("files.py")
GRACE_S = 5.0
"""Seconds past a call's time limit in which a worker must begin or end it; then it is killed."""
_CLEANING_S = 1.0
_PASSED_ON = ("LD_LIBRARY_PATH",)  # without it some Python installations do not start; it holds no secret
_LAYERS = frozenset([*LAYERS, *ADDITIONS.values()])
_LENGTH = struct.Struct(">Q")


class WorkerDiedError(RuntimeError):
    """The worker ended or did not answer in time; it must be replaced."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to a call.

    Attributes:
        text: The result, or the reason of the failure.
        error: Whether the call failed.
        missing: Names of the layers that the system lacks.
    """

    text: str
    error: bool
    missing: tuple[str, ...] = ()


class WorkerProcess:
    """Worker process; used by one thread at a time.

    Args:
        packages: Distributions that snippets may import.
        without: Layers to leave out, for tests of what is then missing.
        landlock: Interface version of Landlock to use, at most the kernel's.
    """

    def __init__(self, packages: tuple[str, ...], without: tuple[str, ...], landlock: int) -> None:
        files = readable_files(packages)
        root = os.path.realpath(tempfile.mkdtemp(prefix="pact-sandbox-"))
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # A fixed hash seed makes the order of sets, and with it observations, the same in every worker.
        environment["PYTHONHASHSEED"] = "0"
        self._control, theirs = socket.socketpair()
        with theirs:
            # -S: no .pth line of an installed project adds its folder or runs its code.
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(_WORKER)],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=environment, cwd=root, start_new_session=True,
            )  # fmt: skip
        self.close = weakref.finalize(self, _end, self.process, self._control, root, os.getpid())
        packages_folder = os.path.join(root, "packages")  # noqa: PTH118 - a setting in JSON
        files.link_packages(Path(packages_folder))
        self._control.settimeout(GRACE_S)
        settings = {"root": root, "packages": packages_folder, "without": without, "landlock": landlock}
        self._send({**settings, "readable": (*files.readable, packages_folder), "listed": files.listed})

    def call(self, request: Mapping[str, Any], *, timeout_s: float, memory_mb: int, max_output_chars: int) -> Answer:
        """Run a call.

        Args:
            request: What the child reads: ``code``, ``name``, ``arguments``, ``seed``, ``max_output_chars``.
            timeout_s: Wall-clock limit in seconds.
            memory_mb: Address space in MiB.
            max_output_chars: Longest text of an answer.

        Raises:
            WorkerDiedError: The worker ended, or did not begin or end a call within the grace time.
        """
        data = json.dumps({**request, "max_output_chars": max_output_chars}).encode()
        self._control.settimeout(timeout_s + GRACE_S)
        self._send({"memory_mb": memory_mb, "cpu_s": math.ceil(timeout_s) + 1})
        sink, source = self._receive_pipes()
        try:
            received = _exchange(sink, source, _LENGTH.pack(len(data)) + data, timeout_s, max_output_chars)
        finally:
            os.close(sink)
            os.close(source)
        self._send({})
        ended_by = int(json.loads(self._receive_line())["signal"])
        if received is None:
            return Answer(f"time limit of {timeout_s:g} s exceeded", error=True)
        try:
            missing = tuple(missing_layers(received, _LAYERS))
            answer = unpack(received, max_output_chars)
        except ValueError:
            return Answer("the tool's process gave a malformed answer", error=True)
        if answer is None:
            return Answer(_how_it_ended(ended_by), error=True, missing=missing)
        return Answer(*answer, missing)

    def _send(self, order: Mapping[str, Any]) -> None:
        try:
            self._control.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise WorkerDiedError from error

    def _receive_pipes(self) -> tuple[int, int]:
        try:
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        except OSError as error:
            raise WorkerDiedError from error
        if len(descriptors) != 2:  # the worker has ended, or this process may open no more files
            for descriptor in descriptors:
                os.close(descriptor)
            raise WorkerDiedError
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, False)
        return descriptors[0], descriptors[1]

    def _receive_line(self) -> bytes:
        line = b""
        try:
            while not line.endswith(b"\n"):
                piece = self._control.recv(1 << 12)
                if not piece:
                    raise WorkerDiedError
                line += piece
        except OSError as error:
            raise WorkerDiedError from error
        return line


def _exchange(sink: int, source: int, request: bytes, timeout_s: float, max_output_chars: int) -> bytes | None:
    """Send the call to its process and read what that says; return ``None`` where the time is over first."""
    deadline = time.monotonic() + timeout_s
    rest, received = memoryview(request), bytearray()
    # Not select(): it fails in processes that have many files open.
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        selector.register(sink, selectors.EVENT_WRITE)
        while not is_whole(bytes(received), max_output_chars):
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for key, _ in selector.select(left):
                if key.fd == source:
                    piece = os.read(source, 1 << 16)
                    if not piece:
                        return bytes(received)
                    received += piece
                    continue
                try:
                    rest = rest[os.write(sink, rest) :]
                except BrokenPipeError:  # its process has ended, as the other pipe will say
                    rest = rest[:0]
                if not rest:
                    selector.unregister(sink)
    return bytes(received)


def _how_it_ended(by_signal: int) -> str:
    if by_signal and by_signal != signal.SIGKILL:
        named = [each.name for each in signal.Signals if each == by_signal]
        return f"the tool's process was ended by {named[0] if named else f'signal {by_signal}'}"
    return "the tool's process ended without a result"


def _end(process: "subprocess.Popen[bytes]", control: socket.socket, root: str, owner: int) -> None:
    """End a worker; its running child dies with it."""
    if os.getpid() != owner:  # a fork of the owner: the worker is not ours to end
        return
    process.kill()
    process.wait()
    control.close()
    try:
        remove_folder(root, _CLEANING_S)
    except (FileNotFoundError, TimeoutError):
        if Path(root).exists():  # a call left more than the time suffices for: another process goes on
            subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", str(_FILES), root], start_new_session=True, cwd="/",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
    except OSError as error:
        _log.warning("the folder %s of a sandbox worker could not be removed: %s", root, error)

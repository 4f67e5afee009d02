"""Sandbox: untrusted snippets run in separate processes with limits on what they can use and reach.

In force for each call:

- a process of its own, forked from a small worker that never imports torch and never runs a snippet itself;
- limits on time (the process is killed), address space, processor time, file size, open files and output;
- no network: a network namespace of its own, no sockets (seccomp), no TCP (Landlock);
- no further processes, threads, programs, signals or tracing, no shared memory that outlives the call (seccomp);
- files: a call may change those of its empty working directory only, and read those, Python's own and the system's
  libraries only, and not ``/proc`` (Landlock);
- no privileges: root's are given up;
- an empty environment, so no inherited secrets;
- Python refuses the same once more, in words that a policy can read.

Not stopped:

- **Layers the system does not offer.** The network namespace needs unprivileged user namespaces (many containers
  refuse them), Landlock needs Linux 5.13, the system-call filter needs Linux on x86-64 or ARM64. Where a layer is
  missing, one warning says so, and native code (``ctypes``) can do what that layer alone refuses. Python's own rules
  stop mistakes, not attacks: a snippet can replace the functions they rely on. On macOS only these and some limits
  hold.
- **Many small files**: each is at most 1 MiB; only time limits their number. They are removed after the call.
- **Kernel bugs** and side channels such as timing. This is no virtual machine.
- **Processor use**: as many snippets run at once as the pool has workers, each up to its time limit.

Windows has none of these layers, and snippets are refused there.
"""

import json
import logging
import os
import queue
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.sandbox.files import empty_folder

_log = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("worker.py")
_GRACE_S = 5.0
"""Seconds past the time limit in which a worker must report that it killed the call; then it is killed itself."""
_MIN_WORKERS, _MAX_WORKERS = 8, 16  # a call that hangs takes a place, not a core
_PASSED_ON = ("LD_LIBRARY_PATH",)  # without it some Python installations do not start; it holds no secret


class SandboxError(OSError):
    """Error of the sandbox itself on this machine, never of a snippet."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one call.

    Attributes:
        timeout_s: Wall-clock limit in seconds.
        memory_mb: Address space in MiB, Python's own ~30 MiB included.
        max_output_chars: Longer results are cut and marked.
    """

    timeout_s: float = 10.0
    memory_mb: int = 512
    max_output_chars: int = 10_000

    def __post_init__(self) -> None:
        """Refuses limits that nothing could meet.

        Raises:
            ValueError: A limit is not positive, or the memory is below what Python itself needs.
        """
        if self.timeout_s <= 0 or self.max_output_chars <= 0 or self.memory_mb < 64:
            raise ValueError(f"timeout_s and max_output_chars must be positive and memory_mb at least 64, got {self}")


class _WorkerDiedError(RuntimeError):
    """The worker ended or did not answer in time; it must be replaced."""


class _Worker:
    """Worker process and the pipes to it; used by one thread at a time."""

    def __init__(self) -> None:
        if os.name != "posix":
            raise SandboxError("the code sandbox needs Linux or macOS; run code tools in WSL or a container on Windows")
        workdir = tempfile.mkdtemp(prefix="pact-sandbox-")
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # A fixed hash seed makes the order of sets, and with it observations, the same in every worker.
        environment["PYTHONHASHSEED"] = "0"
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-X", "utf8", str(_WORKER), workdir],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, cwd=workdir, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.close = weakref.finalize(self, _end, self._process, workdir, os.getpid())
        self._rest = b""

    def request(self, payload: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            _WorkerDiedError: The worker ended, or was silent for ``timeout_s`` seconds and the grace time.
        """
        token = secrets.token_hex(8)
        line = json.dumps({"id": token, **payload}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except BrokenPipeError as error:
            raise _WorkerDiedError from error
        answer: dict[str, Any] = json.loads(self._read_line(time.monotonic() + timeout_s + _GRACE_S))
        if answer["id"] != token:
            raise _WorkerDiedError
        return answer

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        # Not select(): it fails in processes that have many files open.
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                ready = selector.select(max(deadline - time.monotonic(), 0))
                piece = self._process.stdout.read(1 << 16) if ready else b""
                if not piece:
                    raise _WorkerDiedError
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _end(process: "subprocess.Popen[bytes]", workdir: str, owner: int) -> None:
    """End a worker; its running child dies with it."""
    if os.getpid() != owner:  # a fork of the owner: the worker is not ours to end
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        empty_folder(workdir)
        Path(workdir).rmdir()
    except FileNotFoundError:  # the worker was first
        return
    except OSError as error:
        _log.warning("the folder %s of a sandbox worker could not be removed: %s", workdir, error)


class SandboxPool:
    """Workers that all environments of this process share. Thread-safe.

    Workers start when they are first needed. A call waits for a free worker; its limit starts after that wait.
    """

    def __init__(self, max_workers: int) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        # A place holds a worker that is ready, or None: one may be started.
        self._places: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(max_workers):
            self._places.put(None)
        self._missing: set[str] = set()

    def run(self, code: str, name: str, arguments: Mapping[str, Any], *, limits: Limits, seed: int = 0) -> ToolResult:
        """Run ``code`` in a fresh namespace and call its function ``name``.

        Args:
            code: Python source that defines the function.
            name: The function.
            arguments: Keyword arguments of the function, as JSON values.
            limits: Limits of this call.
            seed: Seed of Python's ``random`` in this call.

        Returns:
            The result as text; on failure the reason, with ``error`` set.

        Raises:
            SandboxError: The worker cannot be started on this machine.
        """
        request = {"code": code, "name": name, "arguments": dict(arguments), "seed": seed, **asdict(limits)}
        worker, keep = self._places.get(), False
        try:
            if worker is None:
                worker = _start()
            answer = worker.request(request, limits.timeout_s)
            keep = True
        except _WorkerDiedError:
            return ToolResult("the tool's process ended without a result", error=True)
        finally:
            # After anything but an answer (an interrupt, too) the pipes may hold half a message.
            try:
                if worker is not None and not keep:
                    worker.close()
            finally:
                self._places.put(worker if keep else None)
        self._warn(answer["missing"])
        return ToolResult(answer["text"], error=answer["error"])

    def _warn(self, missing: list[str]) -> None:
        new = set(missing) - self._missing
        if new:
            self._missing |= new
            _log.warning(
                "This system does not offer these layers of the code sandbox: %s. Run the job in a container if the "
                "tools' code is not trusted.",
                ", ".join(sorted(new)),
            )

    def close(self) -> None:
        """End the idle workers; later calls start new ones."""
        idle = []
        while True:
            try:
                idle.append(self._places.get_nowait())
            except queue.Empty:
                break
        for worker in idle:
            if worker is not None:
                worker.close()
            self._places.put(None)


def _start() -> _Worker:
    """Start a worker and run an empty call: a machine on which none works says so at once.

    Raises:
        SandboxError: The worker does not answer.
    """
    worker = _Worker()
    limits = Limits()
    probe = {"code": "def probe(): return 'ready'", "name": "probe", "arguments": {}, "seed": 0, **asdict(limits)}
    try:
        answer = worker.request(probe, limits.timeout_s)
    except _WorkerDiedError as error:
        worker.close()
        raise SandboxError(f"the code sandbox's worker does not start with {sys.executable}") from error
    if answer["text"] != "ready":
        worker.close()
        raise SandboxError(f"the code sandbox cannot run an empty call here: {answer['text']}")
    return worker


_pools: dict[int, SandboxPool] = {}


def shared_pool() -> SandboxPool:
    """Return the pool of this process. A forked process gets its own: pipes cannot be shared."""
    # setdefault is atomic; a lock could be held by another thread at the moment of a fork.
    return _pools.setdefault(os.getpid(), SandboxPool(min(max(os.cpu_count() or 1, _MIN_WORKERS), _MAX_WORKERS)))

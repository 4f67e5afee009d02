"""Sandbox: untrusted snippets run in separate processes with limits on what they can use and reach.

In force for each call:

- a process of its own, forked from a small worker that has seen no call, so that calls share nothing;
- limits on time (the process is killed), address space, processor time, file size, open files and output;
- system calls by an allow-list (seccomp): no sockets, processes, threads, programs, signals or tracing, no change of a
  file's mode, owner, times or attributes, nothing that outlives the call, and none of what a later kernel adds;
- files: a call may change those of its empty working directory only, and read the standard library, the packages that
  are named and the system's libraries only, and not ``/proc`` (Landlock);
- a network, System V objects and a file system of its own: its directory is in memory, all else is read-only;
- no privileges: root's are given up;
- an empty environment, so no inherited secrets;
- Python refuses the same once more, in words that a policy can read.

Not stopped:

- **Layers the system does not offer.** A network and a file system of its own need unprivileged user namespaces (many
  containers refuse them) or root, Landlock needs Linux 5.13, the system-call filter needs Linux on x86-64 or ARM64.
  Where a layer is missing, one warning says so, and native code (``ctypes``) can do what that layer alone refuses;
  ``docs/security.md`` lists it. Python's own rules stop mistakes, not attacks: a snippet can replace the functions they
  rely on. On macOS only these and some limits hold.
- **Names**: whether a path outside exists, its size and its times can be asked.
- **Kernel bugs** and side channels such as timing. This is no virtual machine.
- **Processor use**: as many snippets run at once as the pool has workers, each up to its time limit.

Windows has none of these layers, and snippets are refused there.
"""

import logging
import os
import queue
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.sandbox.libraries import DEFAULT_PACKAGES
from pact_lightning.environments.sandbox.worker_process import WorkerDiedError, WorkerProcess

_log = logging.getLogger(__name__)
_MIN_WORKERS, _MAX_WORKERS = 8, 16  # a call that hangs takes a place, not a core
_NEWEST_LANDLOCK = 1 << 10


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


class SandboxPool:
    """Workers that all environments of this process share. Thread-safe.

    Workers start when they are first needed. A call waits for a free worker; its limit starts after that wait.

    Args:
        max_workers: Calls that run at once.
        packages: Distributions that snippets may import, with what these depend on; one that is not installed is
            skipped.
        without: Names of layers to leave out, to test what is then missing.
        landlock: Newest version of the kernel's file rules to use, to test older kernels.
    """

    def __init__(
        self,
        max_workers: int,
        packages: Collection[str] = DEFAULT_PACKAGES,
        *,
        without: Collection[str] = (),
        landlock: int = _NEWEST_LANDLOCK,
    ) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self._how = (tuple(packages), tuple(without), landlock)
        # A place holds a worker that is ready, or None: one may be started.
        self._places: queue.LifoQueue[WorkerProcess | None] = queue.LifoQueue()
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
        request = {"code": code, "name": name, "arguments": dict(arguments), "seed": seed}
        worker, keep = self._places.get(), False
        try:
            if worker is None:
                worker = _start(*self._how)
            answer = worker.call(request, **asdict(limits))
            keep = True
        except WorkerDiedError:
            return ToolResult("the tool's process ended without a result", error=True)
        finally:
            # After anything but an answer (an interrupt, too) the pipes may hold half a message.
            try:
                if worker is not None and not keep:
                    worker.close()
            finally:
                self._places.put(worker if keep else None)
        self._warn(answer.missing)
        return ToolResult(answer.text, error=answer.error)

    def _warn(self, missing: Collection[str]) -> None:
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


def _start(packages: tuple[str, ...], without: tuple[str, ...], landlock: int) -> WorkerProcess:
    """Start a worker and run an empty call: a machine on which none works says so at once.

    Raises:
        SandboxError: The worker does not answer, or the system is Windows.
    """
    if os.name != "posix":
        raise SandboxError("the code sandbox needs Linux or macOS; run code tools in WSL or a container on Windows")
    worker = None
    probe = {"code": "def probe(): return 'ready'", "name": "probe", "arguments": {}, "seed": 0}
    try:
        worker = WorkerProcess(packages, without, landlock)
        answer = worker.call(probe, **asdict(Limits()))
    except WorkerDiedError as error:
        if worker is not None:
            worker.close()
        raise SandboxError(f"the code sandbox's worker does not start with {sys.executable}") from error
    except OSError as error:
        raise SandboxError(f"the code sandbox's worker cannot be started: {error}") from error
    if answer.text != "ready":
        worker.close()
        raise SandboxError(f"the code sandbox cannot run an empty call here: {answer.text}")
    return worker


_pools: dict[tuple[int, tuple[str, ...]], SandboxPool] = {}


def shared_pool(packages: tuple[str, ...] = DEFAULT_PACKAGES) -> SandboxPool:
    """Return the pool of this process for snippets that may import certain distributions.

    A forked process gets its own: pipes cannot be shared.
    """
    workers = min(max(os.cpu_count() or 1, _MIN_WORKERS), _MAX_WORKERS)
    # setdefault is atomic; a lock could be held by another thread at the moment of a fork.
    return _pools.setdefault((os.getpid(), packages), SandboxPool(workers, packages))

"""Worker of the sandbox: a small process that forks one child per call, and never sees a call.

It is started by its path, never imported, and uses the standard library only, for a quick start. Its parent,
``worker_process.py``, speaks with it over a socket in lines of JSON: settings first, then ``begin`` and ``end`` of each
call. On ``begin`` the worker forks and hands over two pipes. The child closes itself in, says which layers are missing,
and only then reads the call from the first pipe; its answer goes through the second. So a call finds nothing of the
calls before it, and what it does to its process ends with it.
"""

import contextlib
import gc
import importlib.util
import json
import os
import random
import signal
import site
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_lightning.environments.sandbox import (
        answers,
        files,
        limits,
        namespaces,
        refusals,
        system_calls,
    )
else:

    def _beside(name: str) -> Any:
        """Load a module of this folder by path: importing the package could import torch."""
        spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    answers, files, limits = _beside("answers"), _beside("files"), _beside("limits")
    namespaces, refusals, system_calls = _beside("namespaces"), _beside("refusals"), _beside("system_calls")

_LENGTH = struct.Struct(">Q")
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""NumPy's libraries end a process that may not start their threads. Snippets do not see these in ``os.environ``."""


def run_snippet(code: str, name: str, arguments: dict[str, Any]) -> str:
    """Run the snippet in one fresh namespace and call its function ``name``.

    Returns:
        The result: JSON for a dictionary or a list, else its ``str``.
    """
    namespace: dict[str, Any] = {"__name__": "tool"}
    exec(compile(code, f"<{name}>", "exec"), namespace)  # noqa: S102 - running the snippet is this process's purpose
    if not callable(namespace.get(name)):
        raise NameError(f"its code does not define a function named {name}")
    result = namespace[name](**arguments)
    return json.dumps(result, ensure_ascii=False) if isinstance(result, dict | list) else str(result)


class _Worker:
    """Process that each child is a copy of. Nothing in it comes from a call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._root: str = settings["root"]
        self._readable: list[str] = settings["readable"]
        self._listed: list[str] = settings["listed"]
        self._without: list[str] = settings["without"]
        self._landlock = min(files.landlock_version(), settings["landlock"])
        self._missing: list[str] = []
        if not self._offers(limits.NETWORK, namespaces.own_namespaces):
            self._missing.append(limits.NETWORK)
        self._filter = system_calls.packed_filter()
        self._number = 0
        self._rules: int | None = None
        self._sweeper: int | None = None
        self._take_new_folder()

    def _offers(self, layer: str, add: Callable[[], bool]) -> bool:
        return layer not in self._without and add()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that a child needs to close itself in."""
        return () if self._rules is None else (self._rules,)

    def _take_new_folder(self) -> None:
        """Make ``ROOT/<number>/work``: rules are on the outer folder, as a mount hides those on the inner one."""
        if self._rules is not None:
            os.close(self._rules)
        self._number += 1
        self._outer = os.path.join(self._root, str(self._number))  # noqa: PTH118
        self._workdir = os.path.join(self._outer, "work")  # noqa: PTH118
        for folder in (self._outer, self._workdir):
            os.mkdir(folder, 0o700)  # noqa: PTH102
        self._new = self._state()
        self._hook = refusals.make_hook(self._workdir, self._readable, self._listed)
        self._rules = None
        if limits.FILE_RULES not in self._without:
            self._rules = files.make_file_rules(self._outer, self._readable, self._listed, self._landlock)

    def begin(self, control: socket.socket, order: dict[str, Any]) -> int:
        """Fork the child of a call, and hand its pipes to the parent.

        Returns:
            The child's process id.
        """
        call_source, call_sink = os.pipe()
        answer_source, answer_sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_child(self, call_source, answer_sink, order)
        for descriptor in (call_source, answer_sink):
            os.close(descriptor)
        socket.send_fds(control, [b"."], [call_sink, answer_source])
        for descriptor in (call_sink, answer_source):
            os.close(descriptor)
        return pid

    def close_in(self, order: dict[str, Any]) -> list[str]:
        """Add every layer to this process, a child.

        Returns:
            Names of the layers that this system does not offer.
        """
        missing = [*self._missing, *limits.limit_resources(order["memory_mb"], order["cpu_s"])]

        def add(layer: str, function: Callable[[], bool]) -> None:
            if not self._offers(layer, function):
                missing.append(layer)

        add(limits.OWN_FILES, lambda: not self._missing and namespaces.own_files(self._workdir))
        os.chdir(self._workdir)
        rules, program = self._rules, self._filter
        add(limits.FILE_RULES, lambda: rules is not None and files.restrict_files(rules))
        if rules is not None:
            os.close(rules)
        add(limits.PRIVILEGES, limits.drop_capabilities)
        add(limits.FILTER, lambda: program is not None and system_calls.filter_system_calls(program))
        if limits.FILTER in missing and limits.FILE_RULES not in missing:
            missing += [layer for version, layer in files.ADDITIONS.items() if version > self._landlock]
        sys.addaudithook(self._hook)
        return missing

    def end(self, pid: int) -> int:
        """Kill what is left of the child and its group, and see to an empty folder.

        Returns:
            The child's wait status.
        """
        # The child leads its own group only after its first line: kill both.
        for kill in (os.killpg, os.kill):
            # Gone already; macOS says so of a zombie's group in other words.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if self._state() != self._new:
            self._take_new_folder()
        self._sweep()
        return status

    def _state(self) -> list[Any]:
        """Return what a call could change of its folders. With a file system of its own it cannot."""
        state: list[Any] = []
        for folder in (self._outer, self._workdir):
            found = os.stat(folder)  # noqa: PTH116
            state += [found.st_mode, found.st_mtime_ns, found.st_ctime_ns]
            with contextlib.suppress(PermissionError):  # it closed the folder, as its mode says too
                state += os.listdir(folder)  # noqa: PTH208
        return state

    def _sweep(self) -> None:
        """Remove the folders of earlier calls in a process of its own: a call's leftovers must not delay the next."""
        if self._sweeper is not None and os.waitpid(self._sweeper, os.WNOHANG)[0] == 0:
            return
        self._sweeper = None
        old = [name for name in os.listdir(self._root) if name.isdigit() and name != str(self._number)]  # noqa: PTH208
        if not old:
            return
        self._sweeper = os.fork()
        if self._sweeper == 0:
            try:
                limits.die_with_parent()
                os.nice(10)
                for name in old:
                    # What cannot be removed stays for the parent, which says so at the end.
                    with contextlib.suppress(OSError):
                        files.remove_folder(os.path.join(self._root, name))  # noqa: PTH118
            finally:
                os._exit(0)


def _run_child(worker: _Worker, source: int, sink: int, order: dict[str, Any]) -> None:
    """Run a call; never return."""
    try:
        os.setpgid(0, 0)
        limits.die_with_parent()
        _keep_only(source, sink, *worker.descriptors)
        os.write(sink, answers.layers_line(worker.close_in(order)))
        request = json.loads(_read(source, _LENGTH.unpack(_read(source, _LENGTH.size))[0]))
        os.close(source)
        random.seed(request["seed"])
        try:
            text, error = run_snippet(request["code"], request["name"], request["arguments"]), False
        except BaseException as caught:  # noqa: BLE001 - any error of a snippet, even SystemExit, is an observation
            text, error = _describe(caught), True
        data = answers.pack(text, error=error, max_chars=request["max_output_chars"])
        while data:
            data = data[os.write(sink, data) :]
    finally:
        os._exit(0)


def _keep_only(*kept: int) -> None:
    """Close all other descriptors. The standard streams lead nowhere.

    They do so by a description of this call's own: the flags of a shared one would outlive it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    low = 3
    for descriptor in (*sorted(kept), 1 << 10):
        os.closerange(low, descriptor)
        low = descriptor + 1


def _read(source: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = os.read(source, length - len(data))
        if not piece:
            os._exit(0)  # the parent is gone
        data += piece
    return bytes(data)


def _describe(caught: BaseException) -> str:
    try:
        return str(caught) or type(caught).__name__
    except BaseException:  # noqa: BLE001 - the exception's class is the snippet's own code too
        return type(caught).__name__


def _detach_standard_streams() -> socket.socket:
    """Move the control socket off descriptor 0."""
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return control


def _serve(control: socket.socket) -> None:
    """Serve calls until the parent closes its end."""
    orders = control.makefile("rb")
    settings = json.loads(orders.readline())
    sys.path.append(settings["packages"])
    worker = _Worker(settings)
    gc.freeze()  # a child's collections need not copy what is here
    with contextlib.suppress(ConnectionError):  # the parent ended meanwhile
        while order := orders.readline():
            pid = worker.begin(control, json.loads(order))
            orders.readline()  # the end, or the parent's end
            status = worker.end(pid)
            by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            control.sendall(json.dumps({"signal": by}).encode() + b"\n")
    with contextlib.suppress(OSError):
        files.remove_folder(settings["root"])


def main() -> None:
    """Start, with what Python's ``site`` gives besides paths, and serve."""
    control = _detach_standard_streams()
    os.environ.clear()
    for name in _ONE_THREAD:
        os.putenv(name, "1")
    site.setquit()
    site.setcopyright()
    site.sethelper()
    _serve(control)


if __name__ == "__main__":
    main()

"""Worker of the sandbox: a small process that runs each call in a child process.

It is started by its path, never imported, and uses the standard library only, for a quick start. It reads one JSON
request a line and answers one JSON object a line; ``sandbox.py`` is the other side. No snippet runs in the worker
itself: every call is a fork. Calls share nothing, a crash costs only its call, and a child holds no descriptor except
the pipe for its result.
"""

import importlib.util
import json
import math
import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_lightning.environments.sandbox import files as sandbox_files
    from pact_lightning.environments.sandbox import limits as sandbox_limits
else:

    def _beside(name: str) -> Any:
        """Load a module of this folder by path: importing the package could import torch."""
        spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    sandbox_files, sandbox_limits = _beside("files"), _beside("limits")

TRUNCATED = " [truncated]"
NO_NETWORK_NAMESPACE = "network namespace"
NO_SYSTEM_CALL_FILTER = "system-call filter"
NO_FILE_RULES = "file rules (Landlock)"
NO_PRIVILEGES_DROPPED = "dropped privileges"

_library_folders: list[str] = []


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


def _child(request: dict[str, Any], workdir: str, output: int, missing: list[str]) -> None:
    """Run the forked process; never return."""
    try:
        os.setpgid(0, 0)
        sandbox_limits.die_with_parent()
        random.seed(request["seed"])
        missing = [*missing, *_take_away(request, workdir)]
        text, error = run_snippet(request["code"], request["name"], request["arguments"]), False
    except BaseException as caught:  # noqa: BLE001 - any error of a snippet, even SystemExit, is an observation
        text, error = _describe(caught), True
    limit = request["max_output_chars"]
    if len(text) > limit:
        text = text[:limit] + TRUNCATED
    # Half a surrogate pair is a str in Python, but no tokenizer takes it.
    text = text.encode("utf-8", "backslashreplace").decode()
    try:
        _write_all(output, json.dumps({"text": text, "error": error, "missing": missing}).encode())
    finally:
        os._exit(0)


def _take_away(request: dict[str, Any], workdir: str) -> list[str]:
    """Add every layer to this process.

    Returns:
        Names of the layers that this system does not offer.
    """
    missing = sandbox_limits.limit_resources(request["memory_mb"], math.ceil(request["timeout_s"]) + 1)
    readable = (*sandbox_limits.python_files(), *sandbox_files.SYSTEM_LIBRARIES, *_library_folders)
    if not sandbox_files.restrict_files(workdir, readable):
        missing.append(NO_FILE_RULES)
    if not sandbox_limits.drop_capabilities():
        missing.append(NO_PRIVILEGES_DROPPED)
    if not sandbox_limits.filter_system_calls():
        missing.append(NO_SYSTEM_CALL_FILTER)
    sandbox_limits.refuse_in_python(workdir)
    return missing


def _describe(caught: BaseException) -> str:
    try:
        return str(caught) or type(caught).__name__
    except BaseException:  # noqa: BLE001 - the exception's class is the snippet's own code too
        return type(caught).__name__


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_result(source: int, deadline: float, limit: int) -> bytes | None:
    """Read until the end, or up to ``limit`` bytes; return ``None`` if the deadline comes first."""
    data = b""
    while len(data) <= limit:
        ready = select.select([source], [], [], max(deadline - time.monotonic(), 0))[0]
        if not ready:
            return None
        piece = os.read(source, 1 << 16)
        if not piece:
            break
        data += piece
    return data


def serve_one(request: dict[str, Any], workdir: str, protocol: tuple[int, int], missing: list[str]) -> dict[str, Any]:
    """Run one request in a child and answer it, whatever the child does."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (source, *protocol):
            os.close(descriptor)
        _child(request, workdir, sink, missing)
    os.close(sink)
    # A character is at most 12 bytes of escaped JSON.
    data = _read_result(source, time.monotonic() + request["timeout_s"], 12 * request["max_output_chars"] + 4096)
    os.close(source)
    status = _end_child(pid)
    sandbox_files.empty_folder(workdir)
    if data is None:
        return _failure(f"time limit of {request['timeout_s']:g} s exceeded")
    try:
        answer = json.loads(data)
        return {"text": str(answer["text"]), "error": bool(answer["error"]), "missing": list(answer["missing"])}
    except (ValueError, KeyError, TypeError):
        return _failure(_how_it_ended(status))


def _end_child(pid: int) -> int:
    """Kill what is left of the child and its group, and return its wait status."""
    # The child leads its own group only after its first line: kill both.
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # gone already; macOS says so of a zombie's group in other words
            continue
    return os.waitpid(pid, 0)[1]


def _failure(text: str) -> dict[str, Any]:
    return {"text": text, "error": True, "missing": []}


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return f"the tool's process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return "the tool's process ended without a result"


def _detach_standard_streams() -> tuple[int, int]:
    """Move the protocol off descriptors 0 and 1: output of a snippet goes nowhere."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return requests, answers


def main(workdir: str) -> None:
    """Serve requests until the parent closes the pipe."""
    requests, answers = _detach_standard_streams()
    _library_folders.extend(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    os.environ.clear()
    missing = [] if sandbox_limits.leave_network() else [NO_NETWORK_NAMESPACE]
    os.chdir(workdir)
    with os.fdopen(requests, "rb", closefd=False) as lines:
        for line in lines:
            request = json.loads(line)
            answer = serve_one(request, workdir, (requests, answers), missing)
            _write_all(answers, json.dumps({"id": request["id"], **answer}).encode() + b"\n")
    shutil.rmtree(workdir, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])

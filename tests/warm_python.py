"""A Python that has the large libraries imported already: a server that forks once for every program it is asked for.

Importing Lightning, transformers and peft takes longer than most programs that the tests start. `WarmPython` starts
the server and a folder with two commands, ``python`` and ``pact-lightning``, that hand their arguments, their folder,
their environment and their standard streams to it. What runs is a process of its own, with its own exit status; a
signal to the command reaches it. What a test says about imports or about the start itself needs the real commands.
"""

import contextlib
import importlib.util
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

HERE = Path(__file__).resolve()
_CLIENT = """#!{python} -IS
import sys
sys.path.append({folder!r})
from warm_python import ask
ask({asked!r}, {name!r})
"""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class WarmPython:
    """The server, for as long as the object is open or its process lives.

    Args:
        folder: That of a server that another process has started.

    Attributes:
        folder: Holds the commands, to be put first on the ``PATH``.
    """

    def __init__(self, folder=None):
        self._server = None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="warm-"))
        if folder is None:
            self._start(self.folder / "socket")

    def _start(self, asked):
        for name in ("python", "pact-lightning"):
            command = self.folder / name
            command.write_text(
                _CLIENT.format(python=sys.executable, folder=str(HERE.parent), asked=str(asked), name=name)
            )
            command.chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, str(HERE), str(asked)],
            env=os.environ | {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        while not asked.exists():
            assert self._server.poll() is None, "the warm Python did not start"
            time.sleep(0.02)

    @property
    def environment(self):
        """Variables of a process that finds the warm commands first, and the package of this checkout."""
        path = os.pathsep.join([str(self.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        return os.environ | {"PATH": path, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}

    def command(self, *arguments):
        """The words that start ``python`` with these arguments."""
        return [str(self.folder / "python"), *map(str, arguments)]

    def close(self):
        """Ends the server, where this object has started it."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            shutil.rmtree(self.folder)


def ask(asked, name):
    """Runs in the place of a command: has the server run it, and ends as that did."""
    arguments = sys.argv[1:]
    if name == "python" and not _is_program(arguments):
        os.execv(sys.executable, [sys.executable, *arguments])
    message = json.dumps(
        {"name": name, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    ).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(asked)
        for number in _FORWARDED:
            signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
        socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(message)
        status = int(server.recv(16) or b"1")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_program(arguments):
    """Whether it is a program for the warm Python; all other starts are those of a bare one."""
    words = [word for word in arguments if word != "-P"]
    return bool(words) and (words[0] in ("-", "-c") or words[0].endswith(".py"))


def serve(asked):
    """Forks for every program, warm from the first one on; returns in the forked process alone, with what to run."""
    warmed = False
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(asked + ".new")
        listener.listen()
        Path(asked + ".new").rename(asked)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:  # the one who started it has ended
                os._exit(0)
            client, _ = listener.accept()
            if not warmed:
                warm()
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                warmed = True
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(length, "big")))
    program = os.fork()
    if program:
        for stream in streams:
            os.close(stream)
        _attend(client, program)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return request


def _attend(client, program):
    """Passes signals on to a program until it ends, and its status back; it is killed where who asked for it was."""
    while True:
        if select.select([client], [], [], 0.02)[0]:
            number = client.recv(1)
            os.kill(program, number[0] if number else signal.SIGKILL)
            if not number:
                break
        ended, code = os.waitpid(program, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):
                client.sendall(str(os.waitstatus_to_exitcode(code)).encode())
            break
    os._exit(0)


def run(name, arguments, folder, environment):
    """Becomes the program, as the real command would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0)  # noqa: SIM115  # the server's has seen the end of another stream
    del sys.path[0]  # this file's folder
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in given if place and place not in sys.path]
    importlib.invalidate_caches()
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__dict__["__spec__"] = None
    if name == "pact-lightning":
        sys.argv[:] = [name, *arguments]
        sys.executable = str(Path(environment["PATH"].split(os.pathsep)[0], "python"))  # for processes of its own
        from pact_lightning.cli.main import main as command

        command()
        return
    beside = "-P" not in arguments[:1]
    first = arguments.pop(0 if beside else 1)
    del arguments[: not beside]
    if first.endswith(".py"):
        sys.argv[:] = [first, *arguments]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
        return
    text = sys.stdin.read() if first == "-" else arguments.pop(0)
    sys.argv[:] = [first, *arguments]
    if beside:
        sys.path.insert(0, "")
    exec(compile(text, "<program>", "exec"), main.__dict__)


def warm():
    """Imports what programs of the tests need, as the command would."""
    import gc

    from pact_lightning.cli import main

    gc.disable()
    main._ask_for_same_bits()
    for module in (
        "lightning.pytorch",
        "peft",
        "bitsandbytes",
        "transformers.models.auto.modeling_auto",
        "transformers.models.qwen3.modeling_qwen3",
        "tensorboard",
        "pact_lightning.cli.fit",
        "pact_lightning.training.pact_module",
        "pact_lightning.training.sft_module",
        "pact_lightning.training.rollout_datamodule",
        "pact_lightning.training.trace_datamodule",
        "pact_lightning.tasks.bundled.tasks",
        "pact_lightning.report.page",
        "mcp.server",
    ):
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    asked_for = serve(sys.argv[1])
    run(**asked_for)

"""Code tools and their sandbox: what a snippet gives, and what it cannot do. Every attack here is run for real."""

import gc
import json
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pact_lightning.environments.protocol import Environment
from pact_lightning.environments.sandbox import sandbox, worker_process
from pact_lightning.environments.sandbox.code_tools import CodeToolEnvironment
from pact_lightning.environments.sandbox.sandbox import Limits, SandboxPool, shared_pool
from pact_lightning.types.prompt import EnvironmentSpec, PromptView

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs a POSIX system")
PREFIX = "an error occured when call f: "


def environment(code, **limits):
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    return CodeToolEnvironment({"f": code}, [schema], **limits)


def call(body, arguments=None, *, parameters="", **limits):
    """Calls ``def f(parameters): body`` in the sandbox."""
    code = f"def f({parameters}):\n" + "\n".join("    " + line for line in body.splitlines())
    return environment(code, **{"timeout_s": 30.0, **limits}).call("f", arguments or {})


@pytest.fixture
def layers(caplog):
    """The layers of the sandbox that this system offers."""
    pool = SandboxPool(1)
    with caplog.at_level(logging.WARNING):
        assert pool.run("def f(): return 1", "f", {}, limits=Limits()).text == "1"
    pool.close()
    return {layer for layer in ("network namespace", "system-call filter") if layer not in caplog.text}


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("{'a': [1, None], 'é': True}", '{"a": [1, null], "é": true}'),
        ("[1, 'x']", '[1, "x"]'),
        ("(1, 'x')", "(1, 'x')"),
        ("'plain'", "plain"),
        ("None", "None"),
        ("3.0", "3.0"),
    ],
)
def test_dictionaries_and_lists_come_as_json_all_else_as_str(expression, text):
    result = call(f"return {expression}")
    assert (result.text, result.error) == (text, False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no such city')", "no such city"),
        ("assert False", "AssertionError"),
        ("import sys; sys.exit('bye')", "bye"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return {(1, 2): 3}", "keys must be str, int, float, bool or None, not tuple"),
        ("return f()", "maximum recursion depth exceeded"),
        ("class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E", "E"),
    ],
)
def test_whatever_is_raised_becomes_the_error_text(body, reason):
    result = call(body)
    assert result.error
    assert result.text.startswith(PREFIX + reason)


def test_wrong_arguments_and_unknown_tools_are_error_observations():
    assert "unexpected keyword argument 'b'" in call("return a", {"b": 1}, parameters="a=0").text
    assert "missing 1 required positional argument" in call("return a", parameters="a").text
    assert "does not define a function named f" in environment("def g(): pass").call("f", {}).text
    unknown = environment("def f(): pass").call("nope", {})
    assert unknown.error
    assert unknown.text == "an error occured when call nope: there is no such tool; the tools are f"


def test_code_that_is_no_python_is_refused_before_any_call():
    with pytest.raises(ValueError, match="the code of the tool 'f' is not valid Python: invalid syntax"):
        environment("def f(: pass")


def test_imports_at_the_top_are_visible_inside_the_function():
    code = "import math\nfrom dateutil import parser\nimport pytz\nK = 2\ndef f(d):\n"
    code += "    return [math.floor(2.5) * K, parser.parse(d).year, pytz.utc.zone]"
    assert json.loads(environment(code).call("f", {"d": "3 May 2021"}).text) == [4, 2021, "UTC"]


def test_arguments_arrive_as_their_json_values():
    arguments = {"a": {"x": [1, 2.5, None, True, "é\u2028\n"]}}
    assert json.loads(call("return {'got': a}", arguments, parameters="a").text) == {"got": arguments["a"]}


def test_a_tool_without_code_and_senseless_limits_are_refused():
    schema = {"type": "function", "function": {"name": "g", "parameters": {}}}
    with pytest.raises(ValueError, match="no code is given for the tools g"):
        CodeToolEnvironment({"f": "def f(): pass"}, [schema])
    for wrong in ({"timeout_s": 0}, {"memory_mb": 8}, {"max_output_chars": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            environment("def f(): pass", **wrong)


def test_it_is_an_environment_and_can_be_built_from_a_spec():
    env = EnvironmentSpec(
        "pact_lightning.CodeToolEnvironment", {"codes": {"f": "def f(): return 1"}, "tools": []}
    ).build()
    assert isinstance(env, Environment)
    assert env.call("f", {}).text == "1"


def test_calls_share_no_state():
    env = environment(
        "import os, json\nfirst = not hasattr(json, 'mark')\njson.mark = 1\n"
        "def f():\n    new = not os.path.exists('file')\n    open('file', 'w').write('x')\n    os.mkdir('folder')\n"
        "    return [first, new, sorted(os.listdir('.'))]"
    )
    texts = {env.call("f", {}).text for _ in range(5)}
    assert texts == {'[true, true, ["file", "folder"]]'}


def test_random_and_set_order_repeat_with_the_seed_in_every_worker():
    env = environment("import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd', 'e'})]")
    prompt = PromptView("t", (), (), EnvironmentSpec("a.b"))
    texts = []
    for seed in (1, 1, 2):
        shared_pool().close()
        env.reset(prompt, seed)
        texts.append(json.loads(env.call("f", {}).text))
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[2][0]
    assert texts[0][1] == texts[2][1]


def test_long_output_is_cut_and_marked():
    assert call("return 'ab' * 10**6", max_output_chars=7).text == "abababa [truncated]"
    assert call("return 'ab' * 3", max_output_chars=6).text == "ababab"
    assert call("raise ValueError('x' * 10**6)", max_output_chars=5).text == PREFIX + "xxxxx [truncated]"
    assert call("return '\\x00' * 10**6", max_output_chars=10_000).text == "\x00" * 10_000 + " [truncated]"


def test_half_a_surrogate_becomes_text():
    call("return '\\ud800'").text.encode()


def test_a_hanging_call_is_killed_and_the_next_one_works():
    for body in ("while True: pass", "import time; time.sleep(1000)"):
        result = call(body, timeout_s=0.3)
        assert (result.text, result.error) == (PREFIX + "time limit of 0.3 s exceeded", True)
    stubborn = "import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    stubborn += "    except OSError: pass\ntime.sleep(1000)"
    assert "time limit" in call(stubborn, timeout_s=0.3).text
    assert call("return 'alive'").text == "alive"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import os; os._exit(0)", "the tool's process ended without a result"),
        ("import os; os._exit(7)", "the tool's process ended without a result"),
        ("import ctypes; ctypes.string_at(0)", "the tool's process was ended by SIGSEGV"),
        ("import os\nfor d in range(3, 64):\n    try: os.close(d)\n    except OSError: pass", ""),
        ("import os\nfor d in range(3, 64):\n    try: os.write(d, b'{\"text\": 1}')\n    except OSError: pass", ""),
    ],
)
def test_a_crash_is_an_error_observation_and_the_next_call_works(body, reason):
    result = call(body)
    assert result.error
    assert result.text.startswith(PREFIX + reason)
    assert call("return 'alive'").text == "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit the address space")
def test_memory_is_limited():
    assert call("return len(bytes(600 << 20))", memory_mb=256).text == PREFIX + "MemoryError"
    assert call("return len(bytes(600 << 20))", memory_mb=1024).text == str(600 << 20)
    assert call("a = []\nwhile True: a.append('x' * 10**6)", memory_mb=128).text == PREFIX + "MemoryError"


def test_what_a_snippet_prints_goes_nowhere_and_harms_nothing():
    body = "import os, sys\nprint('x' * 10**8)\nprint('x' * 10**6, file=sys.stderr)\n"
    body += "os.write(1, b'{\"id\": 1}\\n')\nprint(sys.stdin.read())\nreturn 'ok'"
    assert call(body).text == "ok"


def test_no_environment_variable_reaches_a_snippet(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    shared_pool().close()
    assert call("import os; return dict(os.environ)").text == "{}"
    native = "import ctypes\nc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(4096)\n"
    native += "c.read(c.open(b'/proc/self/environ', 0), b, 4096)\nreturn repr(b.raw)"
    text = call(native, max_output_chars=50_000).text
    assert text.startswith("b'")
    assert "hunter2" not in text


def test_native_code_cannot_read_the_environment_of_the_trainer(layers):
    if "network namespace" not in layers:
        pytest.skip("this system offers no user namespaces")
    body = "import ctypes\nreturn ctypes.CDLL(None).open(path.encode(), 0)"
    assert call(body, {"path": f"/proc/{os.getpid()}/environ"}, parameters="path").text == "-1"


@pytest.mark.parametrize(
    "body",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import os; os.fork()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
    ],
)
def test_python_refuses_network_processes_and_signals(body):
    result = call(body)
    assert result.error
    assert "is not allowed in a tool" in result.text
    assert call("return 'alive'").text == "alive"


@pytest.mark.parametrize(
    "native",
    [
        "c.socket(2, 1, 0)",
        "c.socket(1, 1, 0)",
        "c.fork()",
        "c.kill(os.getppid(), 0)",
        "c.execv(b'/bin/true', None)",
        "c.ptrace(16, os.getppid(), 0, 0)",
        "c.unshare(0x10000000)",
    ],
)
def test_the_kernel_refuses_native_code_the_same(native, layers):
    if "system-call filter" not in layers:
        pytest.skip("this system offers no system-call filter")
    body = f"import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\nreturn [{native}, ctypes.get_errno()]"
    assert call(body).text == "[-1, 1]"


def test_a_server_of_this_machine_cannot_be_reached_by_native_code(layers):
    if not layers:
        pytest.skip("this system offers neither layer")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        body = (
            "import ctypes, struct\nc = ctypes.CDLL(None)\ns = c.socket(2, 1, 0)\n"
            "a = struct.pack('=H', 2) + struct.pack('>H', port) + bytes([127, 0, 0, 1]) + bytes(8)\n"
            "return c.connect(s, a, 16)"
        )
        assert call(body, {"port": server.getsockname()[1]}, parameters="port").text == "-1"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_fork_bomb_makes_not_one_process(layers):
    if "system-call filter" not in layers:
        pytest.skip("this system offers no system-call filter")
    bomb = "import ctypes\nc = ctypes.CDLL(None)\nreturn sum(c.fork() >= 0 for _ in range(1000))"
    assert call(bomb).text == "0"
    assert "can't start new thread" in call("import threading; threading.Thread(target=print).start()").text


def test_files_cannot_be_changed_or_read_outside_the_working_directory(tmp_path):
    target = tmp_path / "precious"
    target.write_text("hunter2")
    for body in (
        "open(path).read()",
        "open(path, 'w')",
        "open(path, 'a')",
        "import os; os.open(path, os.O_RDWR)",
        "import os; os.remove(path)",
        "import os; os.rename(path, path + '2')",
        "import os; os.truncate(path, 0)",
        "import os; os.chmod(path, 0)",
        "import os; os.symlink(path, 'link'); open('link').read()",
        "import shutil, os; shutil.rmtree(os.path.dirname(path))",
    ):
        result = call(body, {"path": str(target)}, parameters="path")
        assert result.error, body
        assert "a tool may not" in result.text, body
    assert target.read_text() == "hunter2"
    assert "File too large" in call("open('big', 'w').write('x' * (2 << 20))").text


def test_the_worker_imports_nothing_heavy():
    body = "import sys\nreturn [m for m in ('torch', 'numpy', 'lightning', 'pact_lightning') if m in sys.modules]"
    assert call(body).text == "[]"


def test_many_threads_get_their_own_answers():
    env = environment("def f(n): return n * n")
    with ThreadPoolExecutor(16) as executor:
        results = list(executor.map(lambda n: env.call("f", {"n": n}).text, range(200)))
    assert results == [str(n * n) for n in range(200)]


def test_a_pool_runs_as_many_calls_at_once_as_it_has_workers():
    pool = SandboxPool(2)
    meet = threading.Barrier(2, timeout=20)

    def run(_):
        meet.wait()
        return pool.run("def f(): return 1", "f", {}, limits=Limits()).text

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(run, range(2))) == ["1", "1"]
    assert pool._places.qsize() == 2
    pool.close()
    with pytest.raises(ValueError, match="at least 1"):
        SandboxPool(0)


def test_a_dead_worker_is_replaced_and_its_call_is_an_error():
    pool = SandboxPool(1)
    code = "import os\ndef f(): return os.getppid()"
    first = int(pool.run(code, "f", {}, limits=Limits()).text)
    os.kill(pool._places.queue[-1].process.pid, signal.SIGKILL)
    dead = pool.run(code, "f", {}, limits=Limits())
    assert dead.error
    assert dead.text == "the tool's process ended without a result"
    assert int(pool.run(code, "f", {}, limits=Limits()).text) != first
    pool.close()


def test_a_worker_that_does_not_answer_is_replaced(monkeypatch):
    monkeypatch.setattr(worker_process, "GRACE_S", 0.2)
    pool = SandboxPool(1)
    assert pool.run("def f(): return 1", "f", {}, limits=Limits()).text == "1"
    os.kill(pool._places.queue[-1].process.pid, signal.SIGSTOP)
    assert pool.run("def f(): return 2", "f", {}, limits=Limits(timeout_s=0.2)).error
    assert pool.run("def f(): return 3", "f", {}, limits=Limits()).text == "3"
    pool.close()


def test_workers_and_their_folders_go_with_the_pool():
    pool = SandboxPool(1)
    folder = pool.run("import os\ndef f(): return os.getcwd()", "f", {}, limits=Limits()).text
    process = pool._places.queue[-1].process
    assert Path(folder).is_dir()
    del pool
    gc.collect()
    assert process.returncode == -signal.SIGKILL
    assert not Path(folder).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_its_interpreter():
    import subprocess

    code = (
        "from pact_lightning.environments.sandbox.sandbox import Limits, shared_pool\n"
        "pool = shared_pool()\n"
        "print(pool.run('import os\\ndef f(): return os.getcwd()', 'f', {}, limits=Limits()).text)\n"
        "print(pool._places.queue[-1].process.pid, flush=True)\n"
    )
    for ending in ("", "import os; os._exit(0)"):
        run = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
        folder, pid = run.stdout.split()
        for _ in range(200):
            gone = not Path(folder).exists() and not _runs_worker(pid)
            if gone:
                break
            threading.Event().wait(0.05)
        assert gone


def _runs_worker(pid):
    try:
        return "sandbox/worker.py" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_process_gets_workers_of_its_own():
    assert call("return 1").text == "1"
    pid = os.fork()
    if pid == 0:
        good = call("return 2").text == "2"
        shared_pool().close()
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert call("return 3").text == "3"


def test_a_python_that_does_not_start_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(sandbox.SandboxError, match="worker does not start with /bin/false"):
        SandboxPool(1).run("def f(): pass", "f", {}, limits=Limits())

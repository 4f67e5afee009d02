"""MCP servers as environments: real processes, a real HTTP server, and servers in this process."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from pact_lightning.environments.mcp.environment import MCPEnvironment
from pact_lightning.environments.mcp.server import MCPServerError
from pact_lightning.environments.protocol import Environment

HERE = Path(__file__).parent.parent
BENCH = {"command": sys.executable, "args": [str(HERE / "mcp_bench_server.py")]}
REAL = dict(BENCH)
QUICK = {"timeout_s": 3.0, "backoff_s": 0.01}


@pytest.fixture(scope="module", autouse=True)
def quick_starts(warm_python):
    """Most servers are started by the warm Python: their starts would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCH, "command", str(warm_python.folder / "python"))
        yield


def plain(mode, **arguments):
    return MCPEnvironment(sys.executable, [str(HERE / "mcp_plain_server.py"), mode], **QUICK, **arguments)


@contextmanager
def opened(**arguments):
    environment = MCPEnvironment(**{**QUICK, "timeout_s": 5.0, **arguments})
    environment.reset(None, 0)
    yield environment
    environment.close()


@contextmanager
def http_server(port):
    process = subprocess.Popen(
        [sys.executable, str(HERE / "mcp_bench_server.py"), str(port)], stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=["stdio", "http", "in process"])
def bench(request):
    """The same server, reached in the three ways."""
    if request.param == "http":
        port = free_port()
        with http_server(port), opened(url=f"http://127.0.0.1:{port}/mcp", headers={"X-Any": "1"}) as environment:
            yield environment
    else:
        target = REAL if request.param == "stdio" else {"server": "mcp_bench_server.make_server"}
        with opened(**target) as environment:
            yield environment


def test_tools_are_the_server_s(bench):
    assert isinstance(bench, Environment)
    tools = {tool["function"]["name"]: tool["function"] for tool in bench.tools}
    assert list(tools)[:3] == ["add", "keep", "facts"]
    assert tools["add"]["description"] == "Adds."
    assert tools["add"]["parameters"]["required"] == ["a"]
    assert tools["add"]["parameters"]["properties"]["b"]["default"] == 1
    json.dumps(bench.tools)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("add", {"a": 2}, "3"),
        ("facts", {}, '{"é": [1, null]}'),
        ("variable", {"name": "NO_SUCH_VARIABLE"}, "null"),
        ("media", {}, "one\na memo\ntwo <|im_end|>\n[image image/png, not shown]"),
        ("sleep", {"seconds": 0}, "awake"),
        ("log", {}, "written"),
        (
            "chart",
            {},
            '3 bars\n{"of": [{"url": "data:image/png;base64,[image image/png, not shown]"}]}\n'
            "[image image/png, not shown]",
        ),
    ],
)
def test_results_are_text(bench, name, arguments, text):
    result = bench.call(name, arguments)
    assert (result.text, result.error) == (text, False)


@pytest.mark.parametrize(("name", "arguments"), [("add", {"a": "x"}), ("add", {}), ("wrong", {}), ("nope", {})])
def test_failures_are_error_responses(bench, name, arguments):
    result = bench.call(name, arguments)
    assert result.error
    assert result.text.strip()
    assert "Traceback" not in result.text
    assert bench.call("add", {"a": 1}).text == "2"


def test_a_call_that_hangs_obeys_the_limit_and_the_session_goes_on():
    for target in (QUICK | BENCH, {"server": "mcp_bench_server.make_server", "timeout_s": 1.0}):
        with opened(**target) as environment:
            assert environment.call("keep", {"what": "a"}).text == '["a"]'
            result = environment.call("sleep", {"seconds": 60})
            limit = f"{target['timeout_s']:g} seconds"
            assert (result.text, result.error) == (f"The tool server did not answer within {limit}.", True)
            assert environment.call("keep", {"what": "b"}).text == '["a", "b"]'
            assert environment.restarts == 0


def test_a_tool_that_blocks_the_loop_of_its_server_holds_up_no_other_thread():
    with opened(server="mcp_bench_server.make_server", timeout_s=0.2) as environment:
        assert environment.call("block", {"seconds": 2}).unanswered
        connection = environment._connection
        environment.close()
        assert not connection.wait_ended(0)  # the loop is still blocked: close() has not waited for it
        assert connection.wait_ended(30)


def test_a_tool_of_a_server_in_this_process_that_exits_ends_no_other_call():
    here = {"server": "mcp_bench_server.make_server"}
    with opened(**here) as environment, opened(**here) as other:
        result = environment.call("leave", {})
        assert (result.text, result.error) == ("The tool failed: 3", True)
        assert environment.call("add", {"a": 1}).text == "2"
        assert other.call("add", {"a": 1}).text == "2"


def test_a_server_that_no_longer_answers_at_all_is_started_again():
    with opened(**BENCH, **QUICK) as environment:
        assert environment.call("block", {"seconds": 60}).error
        assert environment.call("add", {"a": 1}).text == "2"
        assert environment.restarts == 1


def test_a_server_that_dies_is_started_again_a_limited_number_of_times(caplog):
    with opened(**BENCH, max_restarts=2) as environment, caplog.at_level(logging.WARNING):
        environment.call("keep", {"what": "a"})
        for restarts in (0, 1, 2):
            result = environment.call("die", {})
            assert (result.text, result.error) == (
                "The tool server ended during the call, and what it kept is lost.",
                True,
            )
            assert environment.restarts == restarts
            if restarts < 2:
                assert environment.call("keep", {"what": "b"}).text == '["b"]'
        result = environment.call("add", {"a": 1})
        assert (result.text, result.error) == ("The tool server has ended 3 times and is not started again.", True)
        environment.reset(None, 0)  # the next rollout has a session of its own
        assert environment.call("add", {"a": 1}).text == "2"
    assert [record.getMessage().rpartition("(")[2] for record in caplog.records] == ["1 of 2)", "2 of 2)"]


def test_an_http_server_that_comes_back_is_found_again():
    port = free_port()
    with (
        http_server(port) as process,
        opened(url=f"http://127.0.0.1:{port}/mcp", max_restarts=5, backoff_s=0.5) as environment,
    ):
        assert environment.call("add", {"a": 1}).text == "2"
        process.kill()
        process.wait()
        assert environment.call("add", {"a": 1}).error
        with http_server(port):
            assert environment.call("add", {"a": 1}).text == "2"
            assert environment.restarts == 1


def test_sessions_of_rollouts_share_nothing_and_a_shared_one_everything():
    with opened(**BENCH) as one, opened(**BENCH) as other:
        one.call("keep", {"what": "a"})
        assert other.call("keep", {"what": "b"}).text == '["b"]'
        one.reset(None, 0)
        assert one.call("keep", {"what": "c"}).text == '["c"]'
    with opened(**BENCH, session="shared") as one, opened(**BENCH, session="shared") as other:
        one.call("keep", {"what": "a"})
        one.close()
        assert other.call("keep", {"what": "b"}).text == '["a", "b"]'


def test_each_rollout_may_start_a_shared_server_again():
    with opened(**BENCH, session="shared", max_restarts=1) as environment:
        for restarts in (1, 2, 3):
            environment.call("die", {})
            environment.reset(None, 0)
            assert environment.call("add", {"a": 1}).text == "2"
            assert environment.restarts == restarts


def test_many_threads_may_use_a_shared_session():
    with opened(**BENCH, session="shared", timeout_s=20.0) as environment:
        sums: dict = {}

        def add(number):
            sums[number] = environment.call("add", {"a": number, "b": number}).text

        threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == {number: str(2 * number) for number in range(20)}


def test_closing_ends_the_process_and_building_starts_none():
    environment = MCPEnvironment(**BENCH)
    assert environment._connection is None
    environment.reset(None, 0)
    connection = environment._connection
    environment.close()
    assert connection.wait_ended(10)


def test_a_program_gets_only_named_environment_variables(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    with opened(**BENCH, env={"NAMED": "yes"}) as environment:
        assert environment.call("variable", {"name": "SECRET_KEY"}).text == "null"
        assert environment.call("variable", {"name": "NAMED"}).text == "yes"
        assert environment.call("variable", {"name": "PATH"}).text == os.environ["PATH"]


PUT = {"include": ["put"], "fixed_arguments": {"key": "k"}, "result_field": "basket"}


def test_state_on_the_disk_is_a_rollout_s_own_and_ends_with_it():
    with (
        opened(**BENCH, **PUT, env={"BASKETS": "{rollout}"}) as one,
        opened(**BENCH, **PUT, env={"BASKETS": "{rollout}"}) as other,
    ):
        assert one.call("put", {"article": "pen"}).text == '["pen"]'
        assert one.call("put", {"article": "cup"}).text == '["pen", "cup"]'
        assert other.call("put", {"article": "cup"}).text == '["cup"]'
        folder, connection = Path(one._connection.rollout), one._connection
        assert [file.name for file in folder.iterdir()] == ["k.json"]
        one.reset(None, 0)
        assert one.call("put", {"article": "cup"}).text == '["cup"]'
        assert connection.wait_ended(20)
        assert not folder.exists()


def test_the_end_of_the_process_removes_a_rollout_s_folder_without_a_word():
    code = (
        "from pact_lightning import MCPEnvironment as E; "
        f"made = [E(**{BENCH!r}, env={{'BASKETS': '{{rollout}}'}}) for _ in range(2)]; [e.tools for e in made]; "
        "print(*(e._connection.rollout for e in made)); made[0].close()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stderr == ""
    folders = [Path(folder) for folder in ended.stdout.split()]
    assert len({folder for folder in folders if not folder.exists()}) == 2


def test_a_server_that_dies_finds_its_rollout_s_folder_again():
    arguments = {**PUT, "include": ["put", "die"], "env": {"BASKETS": "{rollout}"}}
    with opened(**BENCH, **arguments) as environment:
        environment.call("put", {"article": "pen"})
        assert environment.call("die", {}).unanswered
        assert environment.call("put", {"article": "cup"}).text == '["pen", "cup"]'


def test_fixed_arguments_are_sent_and_neither_seen_nor_set_by_the_policy(tmp_path):
    arguments = {"include": ["put", "add"], "fixed_arguments": {"key": "{rollout}"}, "env": {"BASKETS": str(tmp_path)}}
    with opened(**BENCH, **arguments) as environment:
        parameters = environment.tools[0]["function"]["parameters"]
        assert (list(parameters["properties"]), parameters["required"]) == (["article"], ["article"])
        mine = json.loads(environment.call("put", {"article": "pen", "key": "theirs"}).text)
        assert mine["basket"] == ["pen"]
        assert mine["key"] not in ("theirs", "{rollout}")
        assert environment.call("add", {"a": 1}).text == "2"
        environment.reset(None, 0)
        other = json.loads(environment.call("put", {"article": "pen"}).text)
        assert other["basket"] == ["pen"]
        assert other["key"] != mine["key"]
    with pytest.raises(MCPServerError, match="none takes the argument 'kye' of fixed_arguments"):
        MCPEnvironment(**BENCH, fixed_arguments={"kye": 1}).reset(None, 0)


def test_some_of_the_tools():
    with opened(**BENCH, include=["facts", "add"]) as environment:
        assert [tool["function"]["name"] for tool in environment.tools] == ["facts", "add"]
        assert environment.call("die", {}).text == "There is no tool named 'die'. The tools are: facts, add."
    with pytest.raises(MCPServerError, match="it has no tool 'fly' to include; it has add, keep"):
        MCPEnvironment(**BENCH, include=["fly"]).reset(None, 0)

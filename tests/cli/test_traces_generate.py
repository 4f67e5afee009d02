"""The generate command against a scripted teacher: resumed to the task, counted, and one sentence for every mistake."""

import json
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_server import SOON, Answer, ScriptedServer, chat, expert, native

from pact_lightning.cli.errors import run
from pact_lightning.cli.traces_generate import generate
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.utils.json_lines import AppendLog

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS = [make_task("train", index) for index in range(20)]
KEY = "sk-not-to-be-seen"


@pytest.fixture
def tasks(tmp_path):
    write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    return tmp_path / "tasks.jsonl"


def arguments(server, tasks, out, *more):
    endpoint = ["--endpoint.model", "scripted", "--endpoint.base_url", server.url, "--endpoint.concurrency", "3"]
    prices = ["--endpoint.price_in", "1", "--endpoint.price_out", "10", "--endpoint.retries", "1"]
    limits = ["--teacher.limits.max_turns", "14", "--teacher.attempts", "2"]
    return [str(tasks), str(out), *endpoint, *prices, *limits, *more]


def keyless(server, tasks, out, *more):
    return arguments(server, tasks, out, "--endpoint.api_key_env", "", *more)


def command(given):
    run({"generate": generate}, "pact-lightning traces", ["generate", *given])


def report_of(out):
    return json.loads(out.with_suffix(".report.json").read_text())


def lines(path):
    return path.read_bytes().split(b"\n") if path.exists() else []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed_gives_the_file_of_the_uninterrupted_run(how, tasks, tmp_path, monkeypatch, warm_python):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    key = ["--endpoint.api_key_env", "TEACHER_KEY"]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    with ScriptedServer(expert(TASKS)) as server:
        command(arguments(server, tasks, whole, *key))
        assert set(server.keys) == {f"Bearer {KEY}"}
        requests = len(server.requests)

    def slow(request, number):
        time.sleep(0.02)
        return expert(TASKS)(request, number)

    with ScriptedServer(slow) as server:
        process = subprocess.Popen(
            [warm_python.folder / "pact-lightning", "traces", "generate", *arguments(server, tasks, cut, *key)],
            env=warm_python.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log = cut.with_suffix(".log.jsonl")
        while len(lines(log)) < 6 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        said = process.communicate()[0]
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; run the same command to continue" in said
        assert "Traceback" not in said
    finished = [json.loads(line)["id"] for line in lines(log)[1:-1]]
    assert 4 <= len(finished) < 20
    assert not cut.exists()
    with log.open("ab") as file:
        file.write(b'{"id": "train-19", "finger')  # a write that the kill tore
    with ScriptedServer(expert(TASKS)) as server:
        command(arguments(server, tasks, cut, *key))
        asked = {request["messages"][1]["content"] for request in server.requests}
    assert cut.read_bytes() == whole.read_bytes()
    assert report_of(cut)["usage"] == report_of(whole)["usage"]
    assert report_of(whole)["usage"]["requests"] == requests
    assert len(asked) == 20 - len(finished)
    assert sorted(json.loads(line)["id"] for line in lines(log)[1:-1]) == sorted(task.id for task in TASKS)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY.encode() not in written
    assert b"TEACHER_KEY" not in written


def test_kept_traces_replay_and_are_clean(tasks, tmp_path, capsys):
    out = tmp_path / "traced.jsonl"
    with ScriptedServer(expert(TASKS, "text")) as server:
        command(keyless(server, tasks, out, "--teacher.call_format", "text"))
    traced = JsonlTasks(out).load()
    assert [task.id for task in traced] == [task.id for task in TASKS]
    for task in traced:
        environment = task.prompt.environment.build()
        environment.reset(task.prompt, 0)
        for turn in task.trace.turns:
            for call, response in zip(turn.calls, turn.responses, strict=True):
                assert environment.call(call["name"], call["arguments"]).text == response
        assert trace_problems(task.trace, task.prompt.tool_names) == []
        assert leak_reasons(task.trace, task.reference.answer) == []
        assert task.trace.source == "teacher scripted"
    report, shown = report_of(out), capsys.readouterr().out
    calls = sum(len(task.trace.turns) + 1 for task in TASKS)
    assert (report["tasks"], report["kept"], report["attempts"]) == (20, 20, 20)
    assert report["usage"] == {
        "requests": calls, "retries": 0, "prompt_tokens": 100 * calls, "completion_tokens": 20 * calls, "uncounted": 0
    }  # fmt: skip
    assert report["cost"] == pytest.approx((100 * 1 + 20 * 10) * calls / 1e6)
    assert "20 (100.0 %)" in shown


def test_attempts_end_with_the_first_that_is_kept(tasks, tmp_path):
    """The first task is solved at the second attempt, the second one never."""
    first, second = (task.prompt.messages[-1]["content"] for task in TASKS[:2])
    tries = Counter()

    def script(request, number):
        question = request["messages"][1]["content"].rpartition("Question: ")[2]
        if question == second or (question == first and number == 0 and len(request["messages"]) == 2):
            tries[question] += 1
            return chat("I give up")
        return expert(TASKS)(request, number)

    out = tmp_path / "traced.jsonl"
    with ScriptedServer(script) as server:
        command(keyless(server, tasks, out))
        command(keyless(server, tasks, out, "--untraced", "true"))  # all is in the log: nothing is asked again
    assert tries == {first: 1, second: 2}
    report = report_of(out)
    assert (report["kept"], report["outcomes"]) == (19, {"kept": 19, "no_call": 1})
    assert report["attempt_outcomes"] == {"kept": 19, "no_call": 3}
    assert [entry["task"] for entry in report["examples"]["no_call"]].count("train-1") == 2
    assert report["this_run"]["requests"] == 0
    assert [task.trace is None for task in JsonlTasks(out).load()] == [False, True, *[False] * 18]


def test_tasks_without_an_answer_from_the_endpoint_are_left_for_another_run(tasks, tmp_path):
    question = TASKS[4].prompt.messages[-1]["content"]

    def script(request, number):
        if question in request["messages"][1]["content"]:
            return Answer({"error": {"message": "overloaded"}}, 503, SOON)
        return expert(TASKS)(request, number)

    out = tmp_path / "traced.jsonl"
    with ScriptedServer(script) as server, pytest.raises(SystemExit) as left:
        command(keyless(server, tasks, out))
    assert left.value.code == 1
    assert report_of(out)["kept"] == 19
    assert list(report_of(out)["left"]) == ["train-4"]
    with ScriptedServer(expert(TASKS)) as server:
        command(keyless(server, tasks, out))
        assert len(server.requests) == len(TASKS[4].trace.turns) + 1
    assert (report_of(out)["kept"], report_of(out)["left"]) == (20, {})


def test_an_environment_that_does_not_start_is_tried_again_once_it_is_mended(tmp_path, monkeypatch, capsys):
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "traced.jsonl"
    elsewhere = replace(TASKS[0].prompt.environment, class_path="mended_world.BundledWorld")
    write_jsonl(tasks, [replace(TASKS[0], prompt=replace(TASKS[0].prompt, environment=elsewhere)), TASKS[1]])
    with ScriptedServer(expert(TASKS)) as server:
        with pytest.raises(SystemExit) as left:
            command(keyless(server, tasks, out))
        assert (left.value.code, report_of(out)["kept"], list(report_of(out)["left"])) == (1, 1, ["train-0"])
        assert "left: train-0: The environment cannot be started: ImportError" in capsys.readouterr().out
        (tmp_path / "mended_world.py").write_text(
            "from pact_lightning.tasks.bundled.tools import BundledWorld as BundledWorld\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        command(keyless(server, tasks, out))
    assert (report_of(out)["kept"], report_of(out)["left"]) == (2, {})


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Answer({"error": {"message": "no"}}, 401), "refuses the key"),
        (Answer({"error": {"message": "no"}}, 500, SOON), "tasks in a row failed; the last, train-"),
        (Answer({"error": {"message": "no tools here"}}, 400), "no tools here"),
    ],
)
def test_an_endpoint_of_no_use_stops_the_run(trouble, says, tasks, tmp_path, capsys):
    out = tmp_path / "traced.jsonl"
    with ScriptedServer(lambda request, number: trouble) as server:
        with pytest.raises(SystemExit) as stopped:
            command(keyless(server, tasks, out))
        assert len(server.requests) < 30
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert says in error
    assert len(error.splitlines()) == 1
    assert report_of(out)["finished"] == 0
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--endpoint.api_key_env", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY does not hold an API key"),
        (["--endpoint.base_url", "nowhere"], "base_url must be an address"),
        (["--teacher.attempts", "0"], "attempts must be at least 1"),
        (["--teacher.call_format", "xml"], "call_format"),
        (["--teacher.limits.max_turns", "0"], "must be positive"),
        (["--annotator.attempts", "0"], "annotator"),
    ],
)
def test_mistakes_end_in_one_sentence(more, says, tasks, tmp_path, capsys):
    with ScriptedServer(expert(TASKS)) as server, pytest.raises(SystemExit) as wrong:
        command(keyless(server, tasks, tmp_path / "out.jsonl", *more))
    error = capsys.readouterr().err.strip()
    assert (wrong.value.code, len(error.splitlines())) == (2, 1)
    assert says in error
    assert server.requests == []
    assert not (tmp_path / "out.jsonl").exists()


def test_no_file_of_others_is_overwritten(tasks, tmp_path, capsys):
    before = tasks.read_bytes()
    with ScriptedServer(expert(TASKS)) as server:
        with pytest.raises(SystemExit):
            command(keyless(server, tasks, tasks))
        assert "was not written by this command" in capsys.readouterr().err
        assert tasks.read_bytes() == before
        out = tmp_path / "traced.jsonl"
        command(keyless(server, tasks, out))
        with pytest.raises(SystemExit):
            command(keyless(server, tasks, out, "--endpoint.temperature", "0.3"))
        assert "was made with other settings (temperature); use the same settings" in capsys.readouterr().err


def test_a_task_that_has_changed_is_asked_anew(tasks, tmp_path):
    out = tmp_path / "traced.jsonl"
    with ScriptedServer(expert(TASKS)) as server:
        command(keyless(server, tasks, out))
        before = len(server.requests)
        changed = json.loads(tasks.read_text().splitlines()[0])
        changed["reference"] = {"answer": "nobody"}
        tasks.write_text("\n".join([json.dumps(changed), *tasks.read_text().splitlines()[1:]]))
        command(keyless(server, tasks, out))
        assert len(server.requests) - before == 2 * (len(TASKS[0].trace.turns) + 1)
    assert report_of(out)["outcomes"] == {"kept": 19, "not_verified": 1}


def test_the_log_is_whole_lines(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with AppendLog(path) as log:
        log.append({"a": "half \ud800 of a character"})
        log.append({"b": 2})
    with path.open("ab") as file:
        file.write(b'{"c": 3}')  # whole JSON, but its line break is missing: not to be trusted
    with AppendLog(path) as log:
        assert (log.torn, log.records) == (True, [{"a": "half ? of a character"}, {"b": 2}])
        log.append({"d": 4})
    with AppendLog(path) as log:
        assert (log.torn, len(log.records)) == (False, 3)
    path.write_bytes(b"not json\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"log.jsonl, line 1: is not valid JSON"):
        AppendLog(path)


def test_a_teacher_that_breaks_the_rules_is_counted(tasks, tmp_path):
    def script(request, number):
        return native(("no_such_tool", "{}"))

    out = tmp_path / "traced.jsonl"
    with ScriptedServer(script) as server:
        command(keyless(server, tasks, out))
    report = report_of(out)
    assert (report["kept"], report["attempt_outcomes"]) == (0, {"unknown_tool": 40})
    assert report["examples"]["unknown_tool"][0]["detail"] == "There is no tool named 'no_such_tool'."
    assert JsonlTasks(out).load() == []

"""Building and verifying traces: what the environment does not have, what fails or leaks; each told with its place."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pact_lightning.cli.main import main
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.jsonl import JsonlTasks


def schema(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


class Desk:
    """Two tools, of which the second appears once the first was called; ``fail`` makes a call fail."""

    def __init__(self):
        self.tools = [schema("look")]

    def reset(self, task, seed):
        self.tools = [schema("look")]

    def call(self, name, arguments):
        if name not in ("look", "open"):
            return ToolResult(f"no such tool: {name}", error=True)
        self.tools = [schema("look"), schema("open")]
        if arguments.get("fail"):
            return ToolResult("broken", error=True)
        return ToolResult(f"{name}: 42")


def record(id_, *calls, answer="42", said=None, responses=None, reasoning="Let me see what is there."):
    """A conversation with a turn per call, ``(name, arguments)``; ``said`` is the teacher's last word."""
    messages = [{"role": "user", "content": "What is on the desk?"}]
    for index, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"c{index}", "type": "function", "function": function}
        turn = {"role": "assistant", "content": None, "reasoning_content": reasoning, "tool_calls": [call]}
        messages.append(turn)
        if responses is None or index < len(responses):
            desk = Desk()
            text = desk.call(name, arguments).text if responses is None else responses[index]
            messages.append({"role": "tool", "tool_call_id": f"c{index}", "content": text})
    if said is not None:
        messages.append({"role": "assistant", "content": said})
    tools = [schema(name) for name in ("look", "open", "gone")]
    return {"id": id_, "messages": messages, "tools": tools} | ({} if answer is None else {"answer": answer})


LOOK, OPEN, GONE, FAILING = ("look", {}), ("open", {}), ("gone", {}), ("look", {"fail": 1})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def traces(*arguments):
    try:
        main(["traces", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def built(records, *options):
    """Status, tasks and report of a build."""
    Path("in.jsonl").write_text("".join(f"{json.dumps(value)}\n" for value in records))
    arguments = ("--environment", "test_traces_verdicts.Desk", "--overwrite", "true", *options)
    status = traces("build", "in.jsonl", "out.jsonl", *arguments)
    report = json.loads(Path("out.report.json").read_text())
    return status, JsonlTasks("out.jsonl").load() if status == 0 else [], report


@pytest.mark.parametrize("trust", ["false", "true"])
@pytest.mark.parametrize(
    ("calls", "reason", "field", "words"),
    [
        ((LOOK, GONE), "tool not in the environment", "messages[3].tool_calls[0]", "'gone'"),
        ((FAILING, FAILING), "every call failed", "messages[1].tool_calls[0]", "'broken'"),
    ],
)
def test_calls_that_the_environment_cannot_answer(trust, calls, reason, field, words):
    answers = {"answer": None} if trust == "true" else {}
    kept, bad = record("kept", LOOK, OPEN, said="42", **answers), record("bad", *calls, said="42", **answers)
    status, tasks, report = built([kept, bad], "--trust_teacher", trust)
    assert (status, [task.id for task in tasks]) == (0, ["kept"])
    (problem,) = report["problems"]
    assert (problem["id"], problem["line"], problem["reason"], problem["field"]) == ("bad", 2, reason, field)
    assert words in problem["text"]
    assert len(tasks[0].reference.calls) == 2


def test_a_tool_that_appears_with_a_call_is_the_environments():
    assert built([record("late", LOOK, OPEN, said="42")])[0] == 0
    assert built([record("late", OPEN, said="42")])[0] == 0


def test_trust_ends_where_the_last_call_failed():
    records = [record("end", LOOK, FAILING, answer=None, said="42"), record("start", FAILING, LOOK, answer=None)]
    _, tasks, report = built(records, "--trust_teacher", "true")
    assert report["kept_by"] == {"trusted, not verified": 1}
    assert [(task.id, len(task.reference.calls)) for task in tasks] == [("start", 1)]
    (problem,) = report["problems"]
    assert (problem["reason"], problem["field"]) == ("last call failed", "messages[3].tool_calls[0]")


def test_responses_of_the_environment_are_not_counted_as_agreement():
    _, (task,), report = built([record("open", LOOK, OPEN, responses=["look: 42"], answer="open: 42")])
    assert report["responses"] == {"exact": 1, "json": 0, "differs": 0, "taken": 1}
    assert task.trace.turns[1].responses == ("open: 42",)


def test_places_of_what_does_not_verify():
    wrong = record("wrong", LOOK, answer="17", said="41")
    unknown = record("unknown", LOOK, answer=None, said="42")
    made_up = record("made up", LOOK, OPEN, responses=["look: 42", "open: 1"], said="42")
    nameless = {"messages": 3}
    _, _, report = built([wrong, unknown, made_up, nameless])
    told = {problem["id"]: (problem["field"], problem["text"]) for problem in report["problems"]}
    assert {id_: field for id_, (field, _) in told.items()} == {
        "wrong": "answer",
        "unknown": "answer",
        "made up": "messages[3].tool_calls[0]",
        "in-4": "messages",
    }
    for words in ("'41'", "'look: 42'", "'17'"):
        assert words in told["wrong"][1]
    for remedy in ("`answer` in the record", "--tasks", "--trust_teacher true"):
        assert remedy in told["unknown"][1]
    assert "recorded 'open: 1', replayed 'open: 42'" in told["made up"][1]


def test_a_leak_is_dropped_by_build_verify_and_validate_alike(folder, capsys):
    leaky = record("leaky", LOOK, said="42", reasoning="I shall end with <answer>. Let me see.")
    status, _, report = built([leaky])
    assert (status, report["dropped_by"]) == (1, {"leak": 1})
    assert report["problems"][0]["field"] == "messages[1]"
    built([record("clean", LOOK, said="42"), record("other", LOOK, said="42")])
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    lines[1]["trace"]["turns"][0]["chunks"] = [{"text": "The answer is 42.", "type": "other"}]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    capsys.readouterr()
    assert traces("verify", "tasks.jsonl", "--report", "verdicts.json", "--out", "kept.jsonl") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "leak" in shown
    assert "such as other, trace.turns[0]: Turn 0: chunks that count as safe state the final answer" in shown
    verdicts = json.loads((folder / "verdicts.json").read_text())["traces"]
    assert [(verdict["id"], verdict["reason"], verdict["field"]) for verdict in verdicts] == [
        ("clean", "final answer verifies", ""),
        ("other", "leak", "trace.turns[0]"),
    ]
    with pytest.raises(SystemExit, match="1"):
        main(["tasks", "validate", "tasks.jsonl"])
    assert "state the final answer" in capsys.readouterr().out
    main(["tasks", "validate", "kept.jsonl"])
    assert "1 task, no mistakes" in capsys.readouterr().out


def test_verify_says_which_call_and_can_trust_the_teacher(folder, capsys):
    built([record("a", LOOK, OPEN, said="42"), record("b", LOOK, said="42")])
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    lines[0]["trace"]["turns"][1]["responses"] = ["open: 1"]
    del lines[1]["reference"]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    capsys.readouterr()
    assert traces("verify", "tasks.jsonl") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "such as a, trace.turns[1].calls[0]: call 1 (open): recorded 'open: 1', replayed 'open: 42'" in shown
    assert "--report FILE" in shown
    options = ("--trust_teacher", "true", "--on_mismatch", "replace", "--out", "kept.jsonl")
    assert traces("verify", "tasks.jsonl", *options) == 0
    kept = JsonlTasks(folder / "kept.jsonl").load()
    assert kept[0].trace.turns[1].responses == ("open: 42",)
    assert [task.reference.answer for task in kept] == ["42", "42"]


def test_what_is_there_is_not_written_over(folder, capsys):
    built([record("a", LOOK, said="42")])
    before = (folder / "out.jsonl").read_bytes()
    options = ("--environment", "test_traces_verdicts.Desk")
    commands = [
        ("build", "in.jsonl", "out.jsonl", *options),
        ("verify", "out.jsonl", "--out", "out.jsonl"),
        ("segment", "in.jsonl", "out.jsonl"),
    ]
    statuses: Counter[int] = Counter()
    for command in commands:
        capsys.readouterr()
        assert traces(*command) == 2
        assert "out.jsonl already exists; give another name, or --overwrite true" in capsys.readouterr().err
        assert (folder / "out.jsonl").read_bytes() == before
        statuses[traces(*command, "--overwrite", "true")] += 1
    assert statuses == {0: 3}


@pytest.mark.parametrize("command", ["build", "verify"])
def test_the_help_tells_the_exit_status(command, capsys):
    assert traces(command, "--help") == 0
    assert "Exit status: 0 if" in " ".join(capsys.readouterr().out.split())


def test_what_verify_writes_validates(folder, capsys):
    """A wrong final answer beside a right last response is left out by verify, as by build."""
    built([record("a", LOOK, said="look: 42", answer="look: 42")])
    line = json.loads((folder / "out.jsonl").read_text())
    line["trace"]["final"]["answer"] = "<answer>41</answer>"
    (folder / "tasks.jsonl").write_text(json.dumps(line))
    assert traces("verify", "tasks.jsonl", "--out", "kept.jsonl") == 0
    (kept,) = JsonlTasks(folder / "kept.jsonl").load()
    assert kept.trace.final is None
    capsys.readouterr()
    main(["tasks", "validate", "kept.jsonl"])
    assert "1 task, no mistakes" in capsys.readouterr().out

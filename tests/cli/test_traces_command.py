"""``pact-lightning traces``: from conversations to tasks; every record is kept or told with its place."""

import copy
import json
import re
from dataclasses import replace

import pytest
from openai_records import openai_record

from pact_lightning.cli.main import main
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.tasks.record import task_to_json
from pact_lightning.traces.levels import prefix_ends
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.task import Reference
from pact_lightning.types.trace import Chunk, ChunkType

TASKS = BundledTasks("validation", 6).load()
RECORDS = [openai_record(task) for task in TASKS]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def traces(*arguments):
    """Runs the command; gives its exit status."""
    try:
        main(["traces", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def write(path, records):
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


def built(folder, records, *options):
    """Builds tasks of records, in the environments that these name; gives the tasks and the report."""
    source = write(folder / "in.jsonl", records)
    traces("build", source, folder / "out.jsonl", "--record_environments", "true", "--overwrite", "true", *options)
    return JsonlTasks(folder / "out.jsonl").load(), json.loads((folder / "out.report.json").read_text())


def last_turn_cut(record):
    """A record that ends in calls without responses."""
    record = copy.deepcopy(record)
    while record["messages"][-1]["role"] != "assistant" or "tool_calls" not in record["messages"][-1]:
        record["messages"].pop()
    return record


def without(record, *names):
    return {key: value for key, value in record.items() if key not in names}


class TestBuild:
    def test_good_conversations_become_the_tasks_they_came_from(self, folder, capsys):
        tasks, report = built(folder, RECORDS)
        assert (report["records"], report["kept"], report["problems"]) == (6, 6, [])
        assert report["kept_by"] == {"final answer verifies": 6}
        assert report["responses"]["differs"] == report["responses"]["json"] == 0
        for task, original in zip(tasks, TASKS, strict=True):
            assert (task.prompt, task.reference, task.kind) == (original.prompt, original.reference, original.kind)
            assert task.trace.source == f"in.jsonl, line {TASKS.index(original) + 1}"
            calls = [(turn.reasoning, turn.calls, turn.responses) for turn in task.trace.turns]
            assert calls == [(turn.reasoning, turn.calls, turn.responses) for turn in original.trace.turns]
            assert task.metadata["verified_by"] == "final answer verifies"
        shown = capsys.readouterr().out
        assert "final answer verifies" in shown
        assert "100 %" in shown

    def test_every_broken_record_is_told(self, folder):
        unknown = copy.deepcopy(RECORDS[1])
        unknown["tools"] = [tool for tool in unknown["tools"] if tool["function"]["name"] == "none"]
        liar = copy.deepcopy(RECORDS[2])
        next(message for message in liar["messages"] if message["role"] == "tool")["content"] = "made up"
        wrong = RECORDS[3] | {"reference": {"answer": "unheard of"}}
        lines = [RECORDS[0], '{"messages": [', "", RECORDS[0], unknown, liar, wrong, {"a": 1}, RECORDS[4]]
        tasks, report = built(folder, lines)
        assert [task.id for task in tasks] == [TASKS[0].id, TASKS[4].id]
        assert [(problem["line"], problem["reason"]) for problem in report["problems"]] == [
            (2, "not JSON"),
            (4, "duplicate id"),
            (5, "no tools"),
            (6, "response differs on replay"),
            (7, "neither the final answer nor the last tool response verifies"),
            (8, "unknown format"),
        ]
        assert all(problem["file"].endswith("in.jsonl") and problem["text"] for problem in report["problems"])
        assert report["records"] == 8 == report["kept"] + report["dropped"]
        assert sum(report["dropped_by"].values()) == report["dropped"]

    def test_a_second_try_takes_the_place_of_a_dropped_one(self, folder):
        tasks, report = built(folder, [RECORDS[0] | {"reference": {"answer": "unheard of"}}, RECORDS[0]])
        assert ([task.id for task in tasks], report["dropped"]) == ([TASKS[0].id], 1)

    def test_calls_without_responses_get_the_environments(self, folder):
        tasks, report = built(folder, [last_turn_cut(record) for record in RECORDS])
        assert report["notes"]["last responses taken from the environment"] == 6
        assert report["kept_by"] == {"last tool response verifies": 6}
        for task, original in zip(tasks, TASKS, strict=True):
            assert task.trace.turns[-1].responses == original.trace.turns[-1].responses
            assert task.trace.final is None

    def test_an_environment_for_all(self, folder):
        spec = RECORDS[0]["environment"]
        bare = without(RECORDS[0], "environment", "id", "kind", "metadata")
        options = ["--environment", spec["class_path"], "--environment_args", json.dumps(spec["init_args"])]
        (task,), report = built(folder, [bare, bare | {"id": 7, "reference": None}], *options)
        assert (task.id, task.prompt.environment) == ("in-1", TASKS[0].prompt.environment)
        assert report["dropped_by"] == {"no reference answer": 1}
        assert built(folder, [bare])[1]["dropped_by"] == {"no environment": 1}

    def test_a_record_does_not_choose_what_is_run(self, folder, capsys):
        marker = folder / "ran"
        evil = RECORDS[0] | {"environment": {"class_path": "pathlib.Path.touch", "init_args": {"self": str(marker)}}}
        popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
        write(folder / "in.jsonl", [evil, RECORDS[1] | {"environment": popen}])
        assert traces("build", "in.jsonl", "out.jsonl") == 1
        assert "allow it by record_environments" in " ".join(capsys.readouterr().out.split())
        spec = RECORDS[1]["environment"]
        options = ["--environment", spec["class_path"], "--environment_args", json.dumps(spec["init_args"])]
        assert traces("build", "in.jsonl", "out.jsonl", "--overwrite", "true", *options) == 0
        assert json.loads((folder / "out.report.json").read_text())["notes"]["environment of the record not used"] == 1
        assert not marker.exists()

    def test_trusting_the_teacher(self, folder):
        (task,), report = built(folder, [without(RECORDS[0], "reference")], "--trust_teacher", "true")
        assert report["kept_by"] == {"trusted, not verified": 1}
        assert task.reference.answer == TASKS[0].reference.answer
        assert task.reference.calls == tuple(call for turn in TASKS[0].trace.turns for call in turn.calls)
        assert report["notes"] == {"reference calls taken from the trace": 1}

    def test_other_system_prompts_and_other_responses(self, folder):
        liar = copy.deepcopy(RECORDS[2])
        next(message for message in liar["messages"] if message["role"] == "tool")["content"] = "made up"
        (task,), report = built(folder, [liar], "--system_prompt", "Be good.", "--on_mismatch", "replace")
        assert task.prompt.messages[0] == {"role": "system", "content": "Be good."}
        assert [turn.responses for turn in task.trace.turns] == [turn.responses for turn in TASKS[2].trace.turns]
        assert report["responses"]["differs"] == 1

    def test_traces_of_tasks_one_has(self, folder):
        write_jsonl(folder / "tasks.jsonl", [replace(task, trace=None) for task in TASKS[:3]])
        bare = [without(record, "environment", "reference", "tools", "kind", "metadata") for record in RECORDS[:4]]
        bare[1]["messages"] = bare[2]["messages"]
        tasks, report = built(folder, bare, "--tasks", folder / "tasks.jsonl")
        assert [replace(task, trace=None, metadata={}) for task in tasks] == [
            replace(TASKS[index], trace=None, metadata={}) for index in (0, 2)
        ]
        assert report["dropped_by"] == {"another prompt": 1, "unknown task": 1}

    def test_no_trace_kept_is_status_1_and_wrong_use_is_one_sentence(self, folder, capsys):
        empty = write(folder / "in.jsonl", [{"a": 1}])
        assert traces("build", empty, "none.jsonl") == 1
        for arguments, sentence in (
            (("build", "no.jsonl", "out.jsonl"), "there is no file no.jsonl"),
            (("build", empty, "out.txt"), "use a name that ends in .jsonl"),
            (
                ("build", empty, "out.jsonl", "--environment_args", "{}"),
                "environment_args are given without environment",
            ),
            (("build", empty, "out.jsonl", "--format", "xml"), "format"),
        ):
            capsys.readouterr()
            assert traces(*arguments) == 2
            error = capsys.readouterr().err
            assert sentence in error
            assert error.count("\n") == 1

    def test_an_environment_that_cannot_be_imported_stops_at_once(self, folder, capsys):
        bare = write(folder / "in.jsonl", [without(RECORDS[0], "environment")])
        assert traces("build", bare, "out.jsonl", "--environment", "no.such.Class") == 2
        assert "the environment class 'no.such.Class' cannot be imported" in capsys.readouterr().err
        own = RECORDS[0] | {"environment": {"class_path": "no.such.Class"}}
        assert built(folder, [own])[1]["dropped_by"] == {"environment failed": 1}


def test_verify_says_what_to_keep(folder, capsys):
    lost = replace(TASKS[1], reference=Reference("unheard of"))
    write_jsonl(folder / "tasks.jsonl", [TASKS[0], lost, replace(TASKS[2], trace=None)])
    assert traces("verify", "tasks.jsonl", "--out", "kept.jsonl", "--report", "report.json") == 1
    assert JsonlTasks(folder / "kept.jsonl").load() == [TASKS[0]]
    report = json.loads((folder / "report.json").read_text())
    assert [trace["verdict"] for trace in report["traces"]] == ["kept", "dropped", "dropped"]
    shown = capsys.readouterr().out
    assert "without a trace" in shown
    assert f"such as {lost.id}" in shown
    write_jsonl(folder / "tasks.jsonl", TASKS)
    assert traces("verify", "tasks.jsonl") == 0


def test_segment_tasks_and_conversations(folder, capsys):
    thrown_together = task_to_json(TASKS[0])
    text = "The user asks for a town.\n\nThe first tool is the right tool."
    thrown_together["trace"]["turns"][0]["chunks"] = [{"text": text, "type": "other"}]
    write(folder / "tasks.jsonl", [thrown_together])
    assert traces("segment", "tasks.jsonl", "again.jsonl") == 0
    again = JsonlTasks(folder / "again.jsonl").load()[0]
    chunks = [(chunk.text, chunk.type.value) for chunk in again.trace.turns[0].chunks]
    assert chunks == [(text[:27], "task_restate"), (text[27:], "tool_selection")]
    assert [turn.reasoning for turn in again.trace.turns[1:]] == [turn.reasoning for turn in TASKS[0].trace.turns[1:]]
    write(folder / "in.jsonl", [RECORDS[0], "broken"])
    assert traces("segment", "in.jsonl", "turns.jsonl") == 1
    lines = [json.loads(line) for line in (folder / "turns.jsonl").read_text().splitlines()]
    assert [line["turn"] for line in lines] == list(range(len(TASKS[0].trace.turns) + 1))
    assert "".join(chunk["text"] for chunk in lines[0]["chunks"]) == TASKS[0].trace.turns[0].reasoning
    said = capsys.readouterr().out
    assert "1 record left out, not JSON" in said
    hard = sum(bool(line["hard"]) for line in lines)
    assert f"{len(lines)} turns segmented by rules; {hard} " in said
    assert "uncertain (inspect with `traces show`, or use an annotator)" in said


def test_show_prints_components_and_five_prefixes(folder, capsys):
    marked = copy.deepcopy(RECORDS[1])
    marked["messages"][1]["content"] += " [bold]\x1b[31m[/nothing]"
    write(folder / "in.jsonl", ["broken", RECORDS[0], marked])
    assert traces("show", "in.jsonl", "--id", TASKS[1].id, "--full", "true") == 0
    shown = capsys.readouterr().out
    assert "[bold]\\x1b[31m[/nothing]" in shown, "a file's text is neither markup nor control"
    called = [turn for turn in TASKS[1].trace.turns if turn.reasoning]
    for turn in called:
        ends = prefix_ends(segment_reasoning(turn.reasoning, turn.calls), turn.calls)
        alike = [[level for level in range(5) if ends[level] == end] for end in sorted(set(ends))]
        for levels in alike:
            name = f"L{levels[0]}" if len(levels) == 1 else f"L{levels[0]}-L{levels[-1]}"
            row = re.compile(rf"{name} +│ +{ends[levels[0]]} of {len(turn.reasoning)} ")
            assert row.search(shown), (name, shown)
    assert TASKS[1].trace.turns[0].calls[0]["name"] in shown
    write_jsonl(folder / "tasks.jsonl", TASKS)
    assert traces("show", "tasks.jsonl") == 0
    assert f"trace {TASKS[0].id}" in capsys.readouterr().out
    assert traces("show", "in.jsonl", "--id", "nobody") == 2
    ids = f"it holds {TASKS[0].id!r}, {TASKS[1].id!r}"
    assert f"in.jsonl holds no trace of 'nobody'; 1 of its records are broken; {ids}" in capsys.readouterr().err


def test_a_yaml_file_names_a_task_source(folder, capsys):
    (folder / "source.yaml").write_text(
        "class_path: pact_lightning.BundledTasks\ninit_args: {split: validation, count: 2}\n"
    )
    assert traces("verify", "source.yaml") == 0
    for text, sentence in (
        ("- 1", "must hold `class_path`"),
        ("a: [", "is not valid YAML"),
        ("class_path: pathlib.Path", "is no task source"),
        ("class_path: no.Such", "the task source 'no.Such' cannot be imported"),
        ("{class_path: pathlib.Path, init_args: {a: 1}}", "error: "),
    ):
        (folder / "source.yaml").write_text(text)
        capsys.readouterr()
        assert traces("verify", "source.yaml") == 2
        assert sentence in capsys.readouterr().err


class Halves:
    """An annotator: so much of the reasoning is safe."""

    def __init__(self, share=0.5):
        self.share = share

    def annotate(self, turn, context):
        cut = int(self.share * len(turn.reasoning))
        head, tail = turn.reasoning[:cut], turn.reasoning[cut:]
        return [Chunk(head, ChunkType.TASK_RESTATE), Chunk(tail, ChunkType.EXPLICIT_CALL_PREVIEW)]


def test_an_annotator_is_named_by_import_path(folder, capsys):
    write(folder / "in.jsonl", [RECORDS[0]])
    name = "test_traces_command.Halves"
    assert (
        traces("segment", "in.jsonl", "out.jsonl", "--annotator_class", name, "--annotator_args", '{"share": 0.3}') == 0
    )
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    by_annotator = [
        line for line in lines if [chunk["type"] for chunk in line["chunks"]][-1:] == ["explicit_call_preview"]
    ]
    assert by_annotator
    for line in by_annotator:
        whole = sum(len(chunk["text"]) for chunk in line["chunks"])
        assert line["prefix_ends"][4] == int(0.3 * whole)
    (task,), report = built(folder, [RECORDS[0]], "--annotator_class", name)
    assert report["segmented"]["annotator"] == len(by_annotator)
    assert task.trace.turns[0].reasoning == TASKS[0].trace.turns[0].reasoning
    for arguments, sentence in (
        (("--annotator_class", "no.Such"), "the annotator 'no.Such' cannot be imported"),
        (("--annotator_class", "pathlib.PurePath"), "has no method `annotate`"),
        (("--annotator_class", name, "--annotator_args", '{"a": 1}'), "cannot be created"),
        (("--annotator_args", "{}"), "given without annotator"),
    ):
        capsys.readouterr()
        assert traces("segment", "in.jsonl", "new.jsonl", *arguments) == 2
        assert sentence in capsys.readouterr().err

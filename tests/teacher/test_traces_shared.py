"""Real data: ToolRL's teacher turns are imported and segmented without a leak; FTRL's reference calls replay."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from pact_lightning.cli.main import main
from pact_lightning.teacher.importers.reading import Problem
from pact_lightning.teacher.stored import read_stored
from pact_lightning.traces.levels import prefix_ends

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def turns(shared_data):
    return list(read_stored(shared_data / "toolrl" / "teacher_turns.jsonl.gz"))


def test_teacher_turns_are_imported(turns, shared_data):
    read = [trace for trace in turns if not isinstance(trace, Problem)]
    assert len(turns) == 200
    assert len(read) >= 190
    with gzip.open(shared_data / "toolrl" / "teacher_turns.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for trace, row in zip(turns, rows, strict=True):
        last = trace.turns[-1]
        # Read independently: what the teacher thought, and which tools it named.
        assert last.reasoning == re.search(r"<think>(.*?)</think>", row["output"], re.DOTALL)[1].strip()
        after = row["output"].split("</think>")[1]
        names = re.findall(r'^\{"name": ("(?:[^"\\]|\\.)+")', after, re.MULTILINE)
        assert [call["name"] for call in last.calls] == [json.loads(name) for name in names]
        assert len(trace.prompt.tools) == row["instruction"].count("\nDescription: ")
        assert len(trace.turns) == row["input"].count("<think>") + 1
        unknown = {call["name"] for turn in trace.turns for call in turn.calls} - set(trace.prompt.tool_names)
        # One teacher cut its own call to pieces; the paper's filter drops such a trace.
        assert unknown == ({"LastName varchar", 'HireDate date")'} if trace.prompt.id == "teacher_turns-131" else set())


def test_chunks_cover_the_reasoning_and_no_prefix_holds_the_call(turns):
    seen = 0
    for trace in turns:
        for turn in trace.turns:
            assert "".join(chunk.text for chunk in turn.chunks) == turn.reasoning
            ends = prefix_ends(turn.chunks, turn.calls)
            assert list(ends) == sorted(ends)
            for end in ends:
                prefix = "".join(turn.reasoning[:end].split()).lower().replace("'", '"')
                assert "<tool_call>" not in prefix
                for call in turn.calls:
                    name = "".join(call["name"].split()).lower()
                    arguments = json.dumps(call["arguments"], ensure_ascii=False, separators=(",", ":")).lower()
                    seen += 1
                    assert f'{{"name":"{name}"' not in prefix
                    assert f"{name}(" not in prefix
                    assert not call["arguments"] or "".join(arguments.split()) not in prefix
    assert seen > 800


def test_known_calls_of_ftrl_verify(shared_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, calls = shared_data / "ftrl" / "tasks.jsonl.gz", shared_data / "ftrl" / "reference_calls.jsonl"
    source = {
        "class_path": "pact_lightning.FTRLTasks",
        "init_args": {"path": str(rows), "reference_calls": str(calls)},
    }
    (tmp_path / "ftrl.yaml").write_text(yaml.safe_dump(source))
    main(["traces", "verify", "ftrl.yaml", "--out", "kept.jsonl", "--report", "report.json"])
    assert "1.0000" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = [trace["verdict"] for trace in report["traces"] if trace["reason"] != "no trace"]
    assert verdicts == ["kept"] * 84
    assert {trace["solve_f1"] for trace in report["traces"] if trace["reason"] != "no trace"} == {1.0}
    assert report["solve_f1"] == 1.0
    assert sum(trace["responses"]["differs"] for trace in report["traces"]) == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 84


def test_the_figure_of_your_traces_md(turns):
    """A plain search for the names and all argument values of a turn's calls in its L4 prefix."""
    calling = [turn for trace in turns for turn in trace.turns if turn.calls]
    given_away = 0
    for turn in calling:
        prefix = turn.reasoning[: prefix_ends(turn.chunks, turn.calls)[-1]].lower()
        wanted = [call["name"] for call in turn.calls]
        wanted += [str(value) for call in turn.calls for value in call["arguments"].values()]
        given_away += all(word.lower() in prefix for word in wanted)
    page = (Path(__file__).parent.parent.parent / "docs" / "your_traces.md").read_text(encoding="utf-8")
    assert f"of {given_away} of {len(calling)} turns that call tools" in page

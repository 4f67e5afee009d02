"""FTRL rows with fewer tools than they came with."""

import json

import pytest

from pact_lightning.tasks.ftrl.tasks import FTRLTasks

NAMES = ["a", "needed", "b", "solves", "c"]


@pytest.fixture
def files(tmp_path):
    tools = [{"type": "function", "function": {"name": name, "description": "", "parameters": {}}} for name in NAMES]
    row = {
        "messages": [{"role": "user", "content": "Question: which?"}],
        "tools": json.dumps(tools),
        "codes": json.dumps({name: f"def {name}(): return '{name}'" for name in NAMES}),
        "unsolved_set": json.dumps({"needed": ["x"]}),
    }
    calls = [{"name": name, "arguments": {}, "observation": "x"} for name in ("solves", "needed")]
    rows, known = tmp_path / "rows.jsonl", tmp_path / "known.jsonl"
    rows.write_text(json.dumps(row))
    known.write_text(json.dumps({"index": 0, "calls": calls, "unsolved": []}))
    return rows, known


@pytest.mark.parametrize(
    ("distractors", "kept"),
    [
        (None, NAMES),
        (0, ["needed", "solves"]),
        (1, ["a", "needed", "solves"]),
        (2, ["a", "needed", "b", "solves"]),
        (9, NAMES),
    ],
)
def test_needed_tools_stay_and_the_first_others(files, distractors, kept):
    rows, known = files
    (task,) = FTRLTasks(rows, reference_calls=known, distractors=distractors).load()
    assert list(task.prompt.tool_names) == kept
    assert [tool["function"]["name"] for tool in task.prompt.environment.build().tools] == kept


def test_what_is_needed_is_told_by_the_answers_where_calls_are_not_known(files):
    (task,) = FTRLTasks(files[0], distractors=0).load()
    assert task.prompt.tool_names == ("needed",)


def test_a_negative_number_is_refused(files):
    with pytest.raises(ValueError, match="distractors is a number of tools, at least 0"):
        FTRLTasks(files[0], distractors=-1)

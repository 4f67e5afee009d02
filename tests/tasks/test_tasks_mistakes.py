"""All mistakes of a record and of a file, each with its place."""

import copy
import json
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.fields import TaskRecord
from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.types.prompt import UserTurn
from pact_lightning.utils.errors import TaskFieldError, TaskFileError

TOOL = {"type": "function", "function": {"name": "later", "parameters": {}}}
RECORD = task_to_json(make_task("train", 1)) | {"follow_ups": [{"content": "And?", "tools": [TOOL]}]}


def changed(*changes):
    """The record with values put in at paths, or taken out where the value is ``...``."""
    record = copy.deepcopy(RECORD)
    for path, value in changes:
        *parents, last = path
        place = record
        for key in parents:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return record


def mistakes(record):
    try:
        task_from_json(record)
    except TaskFieldError as error:
        return [error, *error.further]
    return []


def fields(record):
    return [error.field for error in mistakes(record)]


def test_a_task_has_none():
    assert mistakes(RECORD) == []
    assert make_task("train", 1).prompt.follow_ups == ()
    assert UserTurn("And?", (TOOL,)) in task_from_json(RECORD).prompt.follow_ups


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([(["id"], 3), (["kind"], 1), (["metadata"], [])], {"id", "kind", "metadata"}),
        ([(["id"], ...), (["messages"], ...), (["environment"], ...)], {"id", "messages", "environment"}),
        ([(["messages", 0, "role"], "tool"), (["messages", 1, "content"], None)],
         {"messages[0].role", "messages[1].content"}),
        ([(["tools", 0, "function"], ...), (["tools", 2], "x")], {"tools[0].function", "tools[2]"}),
        ([(["tools", 1, "function", "parameters"], None), (["id"], "")], {"tools[1].function.parameters", "id"}),
        ([(["follow_ups"], [{"content": 1}, {}])],
         {"follow_ups[0].content", "follow_ups[1].content"}),
        ([(["follow_ups", 0, "tools", 0, "function", "name"], 1), (["kind"], 1)],
         {"follow_ups[0].tools[0].function.name", "kind"}),
        ([(["reference", "answer"], 1), (["reference", "calls", 0], {}), (["reference", "sub_answers"], 3)],
         {"reference.answer", "reference.calls[0].name", "reference.sub_answers"}),
        ([(["trace", "turns", 0, "calls"], []), (["trace", "turns", 1, "responses"], []), (["trace", "source"], 1)],
         {"trace.turns", "trace.source"}),
        ([(["trace", "turns", 0, "calls", 0, "arguments"], 1), (["trace", "final", "answer"], ...)],
         {"trace.turns[0].calls[0].arguments", "trace.final.answer"}),
        ([(["trace", "turn"], 1), (["answers"], 1), (["reference", "a.b[0]"], 1), (["trace", "turns", 0, "x"], 1)],
         {"trace.turn", "answers", "reference.a.b[0]", "trace.turns[0].x"}),
        ([(["environment", "class_path"], 1), (["environment", "init_args"], 1), (["environment", "x"], 1)],
         {"environment.class_path", "environment.init_args", "environment.x"}),
    ],
)  # fmt: skip
def test_all_of_them_are_told(changes, wanted):
    assert set(fields(changed(*changes))) >= wanted


def test_every_unknown_tool_is_told_once_and_none_where_tools_are_wrong():
    record = changed(
        (["reference", "calls"], [{"name": name, "arguments": {}} for name in ("no", "nope", "no")]),
        (["reference", "sub_answers"], [{"tool": "never", "answer": "x"}]),
    )
    told = [error.problem for error in mistakes(record)]
    assert [problem.split("'")[1] for problem in told] == ["no", "nope", "never"]
    record["tools"][0]["function"]["name"] = None
    assert fields(record) == ["tools[0].function.name"]


def test_the_record_is_left_as_it_is():
    record = changed((["id"], 3), (["tools", 0], "x"), (["trace", "turns", 0, "x"], 1))
    before = copy.deepcopy(record)
    mistakes(record)
    assert record == before


SCHEMA = jsonschema.Draft202012Validator(TaskRecord.model_json_schema())
CONTRADICTION = "may have one system|is not a valid JSON Schema|"
CONTRADICTION += "names the tool|is listed twice|^reply |must end with a user|calls but"
"""Rules beyond the schema."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mistakes_are_told_exactly_where_the_schema_or_a_contradiction_says_so(data):
    record = copy.deepcopy(RECORD)
    for _ in range(data.draw(st.integers(0, 4))):
        place = record
        while True:
            key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                break
            place = inner
        if isinstance(place, dict) and data.draw(st.booleans()):
            place[data.draw(st.text(max_size=4))] = data.draw(json_values)
        else:
            place[key] = data.draw(json_values)
    found = mistakes(record)
    assert len({(error.field, error.problem) for error in found}) == len(found)
    if not found:
        task = task_from_json(record)
        assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task
    # What the fields alone do not show is found once they are sound.
    by_fields = SCHEMA.is_valid(record)
    contradicts = record.get("messages") != [] and all(re.search(CONTRADICTION, error.problem) for error in found)
    assert by_fields == contradicts


@pytest.mark.parametrize("record", [None, 3, "x", []])
def test_what_is_no_object_has_one(record):
    assert fields(record) == ["(the line)"]


def test_a_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = [
        json.dumps(RECORD),
        "{oh no",
        json.dumps(changed((["id"], "other"), (["kind"], 1), (["metadata"], 1))),
        "",
        json.dumps(RECORD),
        json.dumps(changed((["id"], "last"))),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    scanned = list(JsonlTasks(path).scan())
    told = [(entry.line, error.field) for entry in scanned for error in entry.errors]
    assert told == [(2, ""), (3, "kind"), (3, "metadata"), (5, "id"), (7, "")]
    assert [entry.task.id for entry in scanned if entry.task is not None] == [RECORD["id"], "last"]


def test_an_unknown_field_is_told_with_the_nearest():
    (error,) = mistakes(changed((["refrence"], {})))
    assert error.problem.startswith("is not a known field (did you mean `reference`?); known here: id, ")


def flat(tool):
    return tool["function"]


def typed(tool):
    return {"type": "function", **tool["function"]}


def anthropic(tool):
    function = tool["function"]
    return {"name": function["name"], "description": "x", "input_schema": function["parameters"]}


PERSON = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
SAID = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CONVERSATION = "looks like a conversation; `pact-lightning traces build` makes"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda task: task | {"tools": list(map(flat, task["tools"]))}, "' inside `function`"),
        (lambda task: task | {"tools": list(map(typed, task["tools"]))}, "' inside `function`"),
        (lambda task: task | {"tools": list(map(anthropic, task["tools"]))}, "with `input_schema` as `parameters`"),
        (lambda task: task | {"tools": json.dumps(task["tools"])}, "JSON inside a string; decode it"),
        (lambda task: task | {"messages": PERSON}, "not ShareGPT's"),
        (lambda task: {"id": "a", "conversations": PERSON, "tools": "[]"}, CONVERSATION),
        (lambda task: {"messages": SAID}, CONVERSATION),
        (lambda task: [task], "JSON Lines has one object a line"),
    ],
)
def test_a_record_of_another_form_is_told_what_it_is(tmp_path, change, told):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(change(task_to_json(make_task("train", 1)))) + "\n")
    with pytest.raises(TaskFileError, match=r"line 1: field ") as refused:
        JsonlTasks(path).load()
    assert told in str(refused.value)


@pytest.mark.parametrize(("wrap", "jq"), [(lambda task: task, "jq -c . "), (lambda task: [task], "jq -c '.[]' ")])
def test_an_indented_file_is_told_once_and_how_to_mend_it(tmp_path, wrap, jq):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(wrap(task_to_json(make_task("train", 1))), indent=2))
    (only,) = JsonlTasks(path).scan()
    (mistake,) = only.errors
    assert "line 1: is where an indented JSON value begins" in str(mistake)
    assert f"`{jq}{path}` writes it so" in str(mistake)

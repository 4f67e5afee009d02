"""Nulls that a table puts into objects go, nulls that are meant stay: in task files, TRL's rows, traces and the hub."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.tasks.record import task_from_json, without_table_nulls
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.utils.table_nulls import without_nulls_in_arguments, without_nulls_in_schema

STRING = {"type": "string", "description": "A city."}
NULLABLE = {"type": ["string", "null"], "default": None}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": STRING,
        "unit": {"enum": ["C", "F", None], "default": None},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "day": {"type": "string"},
        "near": {"type": "object", "properties": {"x": {"type": "number"}, "y": NULLABLE}},
    },
    "required": ["city"],
}
KEYWORDS = ("type", "description", "enum", "default", "anyOf", "properties", "items", "required")


def as_in_a_table(schema):
    """The schema with every keyword and every property's name in each of its objects, as Arrow stores it."""
    if not isinstance(schema, dict):
        return schema
    full = {keyword: schema.get(keyword) for keyword in KEYWORDS}
    if schema.get("properties"):
        names = ["city", "unit", "note", "day", "near", "x", "y", "amount"]
        full["properties"] = {name: as_in_a_table(schema["properties"].get(name)) for name in names}
    return full


def test_a_schema_is_found_again_in_a_table():
    assert without_nulls_in_schema(as_in_a_table(SCHEMA)) == SCHEMA


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        {"type": "string", "default": None},
        {"const": None},
        {"properties": {"a": {"default": {"b": None}, "examples": [None]}}},
        {"x-order": None},
    ],
)
def test_a_schema_with_nulls_that_are_meant_is_left_alone(schema):
    assert without_nulls_in_schema(schema) == schema


GIVEN = {"city": "Rome", "unit": None, "note": None, "day": None, "amount": None, "near": {"x": None, "y": None}}
MEANT = {"city": "Rome", "unit": None, "note": None, "near": {"y": None}}


@given(values=st.dictionaries(st.sampled_from(["city", "unit", "day", "more"]), st.none() | st.text() | st.integers()))
def test_only_nulls_go(values):
    found, dropped = without_nulls_in_arguments(values, SCHEMA)
    assert len(found) + dropped == len(values)
    assert all(values[name] is None for name in values.keys() - found.keys())
    assert without_nulls_in_arguments(values, {"type": "object"}) == (values, 0), "a schema that says nothing"
    assert without_nulls_in_arguments(values, {**SCHEMA, "additionalProperties": True})[0].items() >= {
        (name, value) for name, value in values.items() if name == "more"
    }


def test_a_required_argument_keeps_its_null():
    assert without_nulls_in_arguments({"city": None}, SCHEMA) == ({"city": None}, 0)


def task():
    call = {"name": "weather", "arguments": GIVEN}
    function = {"name": "weather", "description": "Weather.", "strict": None, "parameters": as_in_a_table(SCHEMA)}
    turn = {"calls": [call], "responses": ["sunny"], "reasoning": "Hm.", "reply": None, "chunks": None, "pattern": None}
    return {
        "id": "a",
        "messages": [{"role": "user", "content": "?", "name": None}],
        "tools": [{"type": "function", "function": function}],
        "environment": {"class_path": "a.B", "init_args": {"meant": None}},
        "follow_ups": None,
        "reference": {"answer": None, "calls": [call], "sub_answers": None},
        "trace": {"turns": [turn], "final": {"answer": "x", "reasoning": None, "chunks": None}, "source": None},
        "kind": None,
        "metadata": {"meant": None},
    }


def test_a_task_file_written_from_a_table(tmp_path):
    path = tmp_path / "tasks.jsonl"
    record = task()
    path.write_text(json.dumps(record))
    (read,) = JsonlTasks(path).load()
    assert read.prompt.tools[0]["function"]["parameters"] == SCHEMA
    assert "strict" not in read.prompt.tools[0]["function"]
    assert (read.prompt.environment.init_args, read.metadata) == ({"meant": None}, {"meant": None})
    assert read.reference.calls == read.trace.turns[0].calls == ({"name": "weather", "arguments": MEANT},)
    assert without_table_nulls(without_table_nulls(record)) == without_table_nulls(record)
    clean = copy.deepcopy(without_table_nulls(record))
    assert task_from_json(clean) == read


def test_a_trace_written_from_a_table():
    function = task()["tools"][0]["function"]
    said = [
        {"role": "user", "content": "?", "tool_calls": None, "tool_call_id": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "function": {"name": "weather", "arguments": GIVEN}}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c", "tool_calls": None, "name": None},
        {"role": "assistant", "content": "sunny", "tool_calls": None},
    ]
    record = {"messages": said, "tools": [{"type": "function", "function": function}]}
    conversation = read_conversation(record)
    assert conversation.tools[0]["function"]["parameters"] == SCHEMA
    assert conversation.dialogue.turns[0].calls[0]["arguments"] == MEANT
    notes = conversation.dialogue.notes
    assert notes == {"tool with nulls of a table taken out": 1, "null of a table taken out of arguments": 3}
    said[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(GIVEN)
    assert read_conversation(record).dialogue.turns[0].calls[0]["arguments"] == GIVEN, "JSON text is no table"

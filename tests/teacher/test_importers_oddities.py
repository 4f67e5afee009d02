"""What is odd in records that are sound all the same: ids, order, nulls, encodings, roles, thinking in two places."""

import copy
import gzip
import json

import pytest
from test_importers import ADD, TOOL, openai

from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.teacher.importers.reading import read_records, record_files

SUB = {"name": "sub", "arguments": {}}
SAYS_42 = {"role": "assistant", "content": "<answer>42</answer>"}


def turn(*, ids=("a", "b"), answers=("a", "b"), names=(None, None), **fields):
    """A record with one turn of two calls; ``answers`` are the responses' ids, whose texts tell their tool."""
    calls = [{"id": id_, "function": call} for id_, call in zip(ids, (ADD, SUB), strict=True)]
    texts = names if any(names) else ("add", "sub")
    tools = [
        {"role": "tool", "tool_call_id": id_, "name": name, "content": text}
        for id_, name, text in zip(answers, names, texts, strict=True)
    ]
    assistant = {"role": "assistant", "content": None, "tool_calls": calls} | fields
    return {"messages": [{"role": "user", "content": "?"}, assistant, *tools, SAYS_42], "tools": [TOOL]}


def read(record):
    dialogue = read_conversation(record).dialogue
    return dialogue, dialogue.turns[0]


@pytest.mark.parametrize(
    ("ids", "answers", "names", "note"),
    [
        (("a", "a"), ("a", "a"), (None, None), "responses matched by order, since ids are missing or stand twice"),
        ((None, None), ("x", "y"), (None, None), "responses matched by order, since ids are missing or stand twice"),
        (("", ""), (1, 2), (None, None), "responses matched by order, since ids are missing or stand twice"),
        ((None, None), (None, None), ("sub", "add"), "responses put into the order of the calls, by the tools' names"),
        ((3, 4), (3, 4), (None, None), None),
        (("a", "b"), (None, None), (None, None), None),
    ],
)
def test_responses_find_their_calls(ids, answers, names, note):
    dialogue, found = read(turn(ids=ids, answers=answers, names=names))
    assert found.responses == ("add", "sub")
    assert dialogue.notes == ({note: 1} if note else {})


@pytest.mark.parametrize(
    ("ids", "answers"), [(("a", "a"), ("a", "b")), (("a", "b"), ("a", "a")), (("a", "b"), ("c", "d"))]
)
def test_ids_that_contradict_each_other_are_told(ids, answers):
    with pytest.raises(RecordError, match=r"field `messages\[[123]\]`") as error:
        read_conversation(turn(ids=ids, answers=answers))
    assert error.value.reason in ("duplicate call id", "ids do not match")


THINKING = "<think>\nHm.\n</think>"
TAGGED = f"{THINKING}\n\n<tool_call>\n{json.dumps(ADD)}\n</tool_call>\n<tool_call>\n{json.dumps(SUB)}\n</tool_call>"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("empty", ["", None, " \n"])
@pytest.mark.parametrize("content", [TAGGED, THINKING])
def test_an_empty_reasoning_counts_as_none(field, empty, content):
    own = {"tool_calls": None} if content == TAGGED else {}
    record = turn(answers=(None, None), content=content, **{field: empty}, **own)
    record["messages"][-1] = {"role": "assistant", "content": f"{THINKING}<answer>42</answer>", field: empty}
    dialogue, found = read(record)
    assert (found.reasoning, found.calls) == ("Hm.", (ADD, SUB))
    assert (dialogue.final.reasoning, dialogue.final.answer) == ("Hm.", "<answer>42</answer>")
    assert dialogue.notes == {}


@pytest.mark.parametrize(
    ("reasoning", "content", "found", "notes"),
    [
        ("Hm.", THINKING, "Hm.", {}),
        ("Hm.", "", "Hm.", {}),
        ("Hm.", [], "Hm.", {}),
        ("Well.", THINKING, "Well.\n\nHm.", {"thinking in the text put behind the reasoning": 1}),
        ("Hm.", TAGGED, "Hm.", {}),
        ("", "<think>Hm.", "Hm.", {"unclosed thinking beside calls taken as the reasoning": 1}),
        (
            "",
            [{"type": "text", "text": "<think>Hm."}],
            "Hm.",
            {"unclosed thinking beside calls taken as the reasoning": 1},
        ),
        ("Hm.", "I add.", "Hm.\n\nI add.", {"text beside calls put behind the reasoning": 1}),
    ],
)
def test_thinking_and_calls_that_stand_in_two_places(reasoning, content, found, notes):
    dialogue, first = read(turn(reasoning_content=reasoning, content=content))
    assert (first.reasoning, first.calls) == (found, (ADD, SUB))
    assert dialogue.notes == notes


def test_calls_in_two_places_must_be_the_same():
    with pytest.raises(RecordError, match="which ones are the calls") as error:
        read_conversation(turn(content=f"<tool_call>{json.dumps(SUB)}</tool_call>"))
    assert error.value.field == "messages[1].content"


def test_unclosed_thinking_before_a_message_of_calls():
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>Hm."}]
    record = {
        "messages": [
            *said,
            {"role": "tool_call", "content": json.dumps(ADD)},
            {"role": "tool_response", "content": "1"},
        ]
    }
    assert read(record)[1].reasoning == "Hm."
    for bare in (said, [*said, {"role": "tool", "content": "1"}]):
        with pytest.raises(RecordError) as error:
            read_conversation({"messages": bare})
        assert (error.value.reason, error.value.field) == ("unclosed thinking", "messages[1].content")


@pytest.mark.parametrize(
    ("content", "text"),
    [("x", "x"), ("", ""), (None, ""), (7, "7"), (True, "true"), ({"a": None}, '{"a": null}'), ([1, "ü"], '[1, "ü"]'),
     ([], "[]"), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab")],
)  # fmt: skip
def test_responses_of_any_type(content, text):
    record = turn()
    record["messages"][2]["content"] = content
    assert read(record)[1].responses == (text, "sub")


def test_arguments_encoded_twice_and_calls_as_text():
    twice = {"name": "add", "arguments": json.dumps(json.dumps(ADD["arguments"]))}
    dialogue, found = read(turn(tool_calls=[json.dumps({"id": "a", "function": twice}), {"id": "b", "function": SUB}]))
    assert found.calls == (ADD, SUB)
    assert dialogue.notes == {"arguments encoded as JSON twice": 1}


def test_where_system_messages_may_stand():
    record = openai()
    record["messages"].insert(1, {"role": "developer", "content": "Be kind."})
    dialogue = read_conversation(record).dialogue
    assert dialogue.messages[0] == {"role": "system", "content": "Be brief.\n\nBe kind."}
    assert dialogue.notes == {"system messages joined": 1}
    record["messages"].insert(3, {"role": "system", "content": "Late."})
    with pytest.raises(RecordError) as error:
        read_conversation(record)
    assert (error.value.reason, error.value.field) == ("late system message", "messages[3]")


def test_the_old_function_role():
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "function_call": ADD}]
    said += [{"role": "function", "name": "add", "content": "42"}, SAYS_42]
    record = {"messages": said, "functions": [TOOL["function"]]}
    assert read(record)[1].responses == ("42",)
    assert read_conversation(record).tools == (TOOL,)


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_user_says_last_is_left_out(count):
    record = openai()
    before = read_conversation(copy.deepcopy(record)).dialogue
    record["messages"] += [{"role": "user", "content": "Thanks, bye. ###STOP###"}] * count
    after = read_conversation(record).dialogue
    assert (after.turns, after.final, after.follow_ups) == (before.turns, before.final, ())
    assert after.notes == {"closing user message left out": 1}
    del record["messages"][3:5]  # the user speaks before the call is answered
    with pytest.raises(RecordError) as error:
        read_conversation(record)
    assert (error.value.reason, error.value.field) == ("call without response", "messages[2]")


def test_bytes_around_the_records(tmp_path):
    text = json.dumps({"conversations": [{"from": "human", "value": "ü"}]}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n{text}\r\n".encode())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_bytes(f"\ufeff[{text}]\r\n".encode())
    (tmp_path / "d.jsonl").write_bytes(b"")
    assert [len(list(read_records(path))) for path in record_files(tmp_path)] == [2, 1, 1, 0]
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is a Parquet file; write it as JSON Lines first"):
        record_files(tmp_path / "e.parquet")

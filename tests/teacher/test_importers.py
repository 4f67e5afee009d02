"""Teacher conversations of every format become the same thing, and every broken one says where and why."""

import copy
import json

import pytest

from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.trace import TurnPattern

ADD = {"name": "add", "arguments": {"a": 20, "b": 22}}
SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}


def openai():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": json.dumps(ADD["arguments"])}}
    return {
        "id": "r1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 20 + 22?"},
            {"role": "assistant", "content": None, "reasoning_content": "The user wants a sum.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "assistant", "content": "<think>It is 42.</think>\n\n<answer>42</answer>"},
        ],
        "tools": [TOOL],
        "answer": "42",
    }


def sharegpt():
    system = f"Be brief.\n\n# Tools\n\nSee <tools></tools>:\n<tools>\n{json.dumps(TOOL)}\n</tools>\n\nReturn calls."
    call = f"<think>\nThe user wants a sum.\n</think>\n<tool_call>\n{json.dumps(ADD)}\n</tool_call>"
    return {
        "id": "r1",
        "conversations": [
            {"from": "system", "value": system},
            {"from": "human", "value": "What is 20 + 22?"},
            {"from": "gpt", "value": call},
            {"from": "tool", "value": "<tool_response>\n42\n</tool_response>"},
            {"from": "gpt", "value": "<think>It is 42.</think><answer>42</answer>"},
        ],
        "answer": "42",
    }


def toolrl():
    schema = '1. Name: add\nDescription: Adds.\nParameters: {"a": {"description": "", "type": "int", "default": ""}}'
    call = json.dumps({"name": "add", "parameters": ADD["arguments"]})
    return {
        "instruction": f"Help.\n\n**Available Tools**\nYou can use:\n{schema}\n\n**Steps for Each Turn**\nThink.",
        "input": "**Dialogue Records History**\n<user> What is 20 + 22? </user>\n\n"
        "<think> The user wants a sum. </think>\n"
        f'<tool_call>\n{call}\n</tool_call>\n<obs> [{{"name": "add", "results": 42}}] </obs>',
        "output": "<think> It is 42. </think>\n<response> <answer>42</answer> </response>",
        "id": "r1",
        "answer": "42",
    }


@pytest.mark.parametrize("make", [openai, sharegpt, toolrl])
def test_every_format_becomes_the_same_conversation(make):
    conversation = read_conversation(make())
    dialogue = conversation.dialogue
    assert conversation.id == "r1"
    assert conversation.reference.answer == "42"
    assert [tool["function"]["name"] for tool in conversation.tools] == ["add"]
    assert dialogue.messages[-1] == {"role": "user", "content": "What is 20 + 22?"}
    (turn,) = dialogue.turns
    assert (turn.reasoning, turn.calls, turn.responses) == ("The user wants a sum.", (ADD,), ("42",))
    assert turn.pattern is TurnPattern.INITIAL_ATTEMPT
    assert (dialogue.final.reasoning, dialogue.final.answer) == ("It is 42.", "<answer>42</answer>")
    assert (dialogue.open_turn, dialogue.follow_ups) == (None, ())


def test_system_prompts():
    assert read_conversation(openai()).dialogue.messages[0]["content"] == "Be brief."
    kept = read_conversation(sharegpt()).dialogue
    assert kept.messages[0]["content"] == "Be brief.", "what stands before the tools"
    assert kept.notes == {"system prompt left out, since it lists the tools": 1}
    hermes = sharegpt()
    listed = f"You are a function calling model. <tools> {[TOOL]!r} </tools> Return <tool_call>...</tool_call>"
    hermes["conversations"][0]["value"] = listed
    read = read_conversation(hermes)
    assert [message["role"] for message in read.dialogue.messages] == ["user"]
    assert read.tools == (TOOL,), "a list in Python's notation"


def changed(record, path, value):
    """A copy with the value at ``path`` replaced, removed where it is ``...``, or made by a function of the old one."""
    record = copy.deepcopy(record)
    *parents, last = path
    target = record
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value(target[last]) if callable(value) else value
    return record


CALLS = ("messages", 2, "tool_calls")
CALL = "messages[2].tool_calls[0].function"
ARGUMENTS = (*CALLS, 0, "function", "arguments")
TURNS = "conversations"
BROKEN = [
    (openai, ARGUMENTS, '{"a": 20, "b"', "malformed call", f"{CALL}.arguments"),
    (openai, ARGUMENTS, "[1]", "malformed call", f"{CALL}.arguments"),
    (openai, ARGUMENTS, '{"a": NaN}', "malformed call", f"{CALL}.arguments"),
    (openai, (*CALLS, 0, "function", "name"), ..., "malformed call", f"{CALL}.name"),
    (openai, CALLS, "x", "not JSON", "messages[2].tool_calls"),
    (openai, CALLS, 7, "wrong type", "messages[2].tool_calls"),
    (openai, CALLS, lambda old: old * 2, "duplicate call id", "messages[2]"),
    (openai, CALLS, ..., "empty turn", "messages[2]"),
    (openai, ("messages", 0, "role"), "robot", "unknown role", "messages[0].role"),
    (openai, ("messages", 1, "role"), 7, "unknown role", "messages[1].role"),
    (openai, ("messages", 1, "content"), 7, "wrong type", "messages[1].content"),
    (openai, ("messages", 1, "content"), [{"type": "image_url"}], "content is not text", "messages[1].content[0]"),
    (openai, ("messages", 1), "hello", "wrong type", "messages[1]"),
    (openai, ("messages", 1), ..., "no user message", "messages[1]"),
    (openai, ("messages", 3), ..., "call without response", "messages[2]"),
    (openai, ("messages", 3), {"role": "assistant", "content": "."}, "call without response", "messages[2]"),
    (openai, ("messages", 2), {"role": "assistant", "content": "."}, "response without call", "messages[2]"),
    (openai, ("messages", 3, "tool_call_id"), "c2", "ids do not match", "messages[3]"),
    (openai, ("messages", 3, "name"), "sub", "response of another tool", "messages[3]"),
    (openai, ("messages",), lambda old: [*old[:4], {"role": "user"}, old[4]], "unanswered user message", "messages[4]"),
    (openai, ("messages", 4), {"role": "tool", "tool_call_id": "c1"}, "duplicate call id", "messages[4]"),
    (openai, ("messages", 4), {"role": "tool", "content": "42"}, "ids do not match", "messages[4]"),
    (openai, ("messages", 4), {"role": "system", "content": "x"}, "late system message", "messages[4]"),
    (openai, ("messages", 4, "content"), "<think> never", "unclosed thinking", "messages[4].content"),
    (openai, ("messages", 4, "content"), "<tool_call>{}", "malformed call", "messages[4].content"),
    (openai, ("messages",), [], "no assistant turn", "messages"),
    (openai, ("messages",), ..., "unknown format", "(the record)"),
    (openai, ("tools",), "[{", "not JSON", "tools"),
    (openai, ("tools", 0, "function", "name"), "", "broken tool schema", "tools[0].name"),
    (openai, ("answer",), ["42"], "wrong type", "reference.answer"),
    (sharegpt, (TURNS, 1, "from"), "martian", "unknown role", f"{TURNS}[1].from"),
    (sharegpt, (TURNS, 2, "value"), "<tool_call>add(1)</tool_call>", "malformed call", f"{TURNS}[2].value"),
    (sharegpt, (TURNS, 2, "value"), "<tool_call>{}</tool_call>", "malformed call", f"{TURNS}[2].value.name"),
    (sharegpt, (TURNS, 3, "value"), "x <tool_response>1</tool_response>", "broken tool response", f"{TURNS}[3].value"),
    (sharegpt, (TURNS, 3, "value"), "<tool_response>1</tool_response>" * 2, "response without call", f"{TURNS}[3]"),
    (sharegpt, (TURNS, 3, "value"), '{"name": "sub", "content": 1}', "response of another tool", f"{TURNS}[3]"),
    (sharegpt, (TURNS, 0, "value"), "<tools> [{'name': } </tools>", "broken tool schema", f"{TURNS}[0]"),
    (toolrl, ("output",), ..., "missing field", "output"),
    (toolrl, ("output",), "<think> Hm.", "unclosed tag", "output"),
    (toolrl, ("output",), "so: <think> Hm. </think>", "text outside the tags", "output"),
    (toolrl, ("input",), 3, "wrong type", "input"),
    (toolrl, ("input",), lambda old: old.replace("results", "result"), "broken tool response", None),
    (toolrl, ("input",), lambda old: old.replace("[{", "[{}, {"), "broken tool response", None),
    (toolrl, ("instruction",), lambda old: old.replace('"int"', "int"), "broken tool schema", "instruction, tool 1"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "path", "value", "reason", "field"), BROKEN)
def test_a_broken_record_says_where_and_why(make, path, value, reason, field):
    with pytest.raises(RecordError) as error:
        read_conversation(changed(make(), path, value))
    assert error.value.reason == reason
    if field is not None:
        assert error.value.field == field
    assert error.value.problem


@pytest.mark.parametrize("record", [None, 3, "x", [], {}, {"conversations": None}, {"messages": {}}])
def test_what_is_no_record_at_all(record):
    with pytest.raises(RecordError):
        read_conversation(record)


def test_parallel_calls_are_matched_by_id_whatever_the_order():
    record = openai()
    second = copy.deepcopy(record["messages"][2]["tool_calls"][0]) | {"id": "c2"}
    record["messages"][2]["tool_calls"].append(second)
    record["messages"].insert(3, {"role": "tool", "tool_call_id": "c2", "content": "second"})
    (turn,) = read_conversation(record).dialogue.turns
    assert turn.responses == ("42", "second")
    for message in record["messages"]:
        message.pop("tool_call_id", None)
    (turn,) = read_conversation(record).dialogue.turns
    assert turn.responses == ("second", "42"), "without ids, by order"
    del record["messages"][4]
    with pytest.raises(RecordError, match="calls 2 tools but has 1 responses; 'add' has none"):
        read_conversation(record)


def test_several_user_turns_become_follow_ups():
    record = openai()
    more = [{"role": "user", "content": "Sure?"}, {"role": "user", "content": "Really?", "tools": [TOOL]}]
    record["messages"] += [*more, {"role": "assistant", "content": "Yes."}]
    dialogue = read_conversation(record).dialogue
    assert dialogue.follow_ups == (UserTurn("Sure?\n\nReally?", (TOOL,)),)
    assert [turn.reply for turn in dialogue.turns] == [None, "<answer>42</answer>"]
    assert dialogue.final.answer == "Yes."
    assert dialogue.notes == {"user messages joined": 1}


def test_what_is_changed_to_fit_is_counted():
    record = openai()
    record["messages"][2] |= {"content": "I add.", "reasoning_content": "A sum."}
    record["messages"][2]["tool_calls"][0]["function"]["arguments"] = ""
    dialogue = read_conversation(record).dialogue
    assert dialogue.turns[0].reasoning == "A sum.\n\nI add."
    assert dialogue.turns[0].calls[0]["arguments"] == {}
    assert dialogue.notes == {"text beside calls put behind the reasoning": 1, "empty arguments taken as none": 1}
    python = sharegpt()
    python["conversations"][2]["value"] = f"<tool_call>\n{ADD!r}\n</tool_call>"
    python["conversations"][3]["value"] = "<tool_response>\n{'name': 'add', 'content': {'sum': 42}}\n</tool_response>"
    dialogue = read_conversation(python).dialogue
    assert (dialogue.turns[0].calls, dialogue.turns[0].responses) == ((ADD,), ('{"sum": 42}',))
    assert dialogue.notes["call in Python's notation read as JSON"] == 1
    assert dialogue.notes["response taken out of its wrapping"] == 1


def test_a_last_turn_without_responses_stays_open():
    record = openai()
    del record["messages"][3:]
    dialogue = read_conversation(record).dialogue
    assert (dialogue.turns, dialogue.final) == ((), None)
    assert (dialogue.open_turn.calls, dialogue.open_turn.reasoning) == ((ADD,), "The user wants a sum.")


def test_a_failed_call_makes_the_next_turn_a_retry():
    record = openai()
    record["messages"][3]["error"] = True
    record["messages"][4:4] = copy.deepcopy(record["messages"][2:4])
    assert [turn.pattern for turn in read_conversation(record).dialogue.turns] == [
        TurnPattern.INITIAL_ATTEMPT,
        TurnPattern.RETRY_AFTER_FAILED_CALL,
    ]


def test_toolrl_types_and_quoted_tags():
    row = toolrl()
    row["output"] = (
        "<think> In <tool_call> I put <response>. </think>\n" + row["input"].split("</think>\n")[1].split("<obs>")[0]
    )
    conversation = read_conversation(row)
    assert conversation.dialogue.open_turn.reasoning == "In <tool_call> I put <response>."
    properties = conversation.tools[0]["function"]["parameters"]["properties"]
    assert properties == {"a": {"description": "", "type": "integer"}}


@pytest.mark.parametrize("tag", ["</tool_call>", "</obs>", "<tool_call>", "</think>"])
def test_toolrl_s_tags_may_stand_in_arguments_and_results(tag):
    row = toolrl()
    row["input"] = row["input"].replace('{"a": 20', f'{{"c": "x {tag} y", "a": 20').replace("42}", f'"4 {tag} 2"}}')
    assert row["input"].count(tag) == toolrl()["input"].count(tag) + 2
    (turn,) = read_conversation(row).dialogue.turns
    assert turn.calls[0]["arguments"]["c"] == f"x {tag} y"
    assert turn.responses == (f"4 {tag} 2",)

"""Every format and form that ``traces build`` reads: one conversation, written in each, and named in the report."""

import copy
import json
from pathlib import Path

import pytest
from test_importers import ADD, SCHEMA, TOOL, openai, sharegpt

from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation

SUB = {"name": "sub", "arguments": {"a": 3}}
SUB_SCHEMA = {"name": "sub", "description": "Subtracts.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [TOOL, {"type": "function", "function": SUB_SCHEMA}]
ASKED = {"role": "user", "content": "What is 20 + 22?"}
THOUGHT = "Both are needed."
FINAL = {"role": "assistant", "content": "<think>It is 42.</think>\n\n<answer>42</answer>"}
FINAL_PARTS = [{"type": "thinking", "thinking": "It is 42."}, {"type": "text", "text": "<answer>42</answer>"}]


def record(key, entries, **fields):
    return {"id": "r1", "tools": TOOLS, "answer": "42", key: entries} | fields


def swift():
    calls = [{"role": "tool_call", "content": json.dumps(call)} for call in (ADD, SUB)]
    responses = [{"role": "tool_response", "content": text} for text in ("42", "7")]
    thought = {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>"}
    return record("messages", [ASKED, thought, *calls, *responses, FINAL], tools=json.dumps(TOOLS))


def llama_factory(*function_calls):
    """Calls in ``function_call``: text of one call or several, or one after the other, perhaps behind thinking."""
    said = [{"from": "function_call", "value": value} for value in function_calls]
    said += [{"from": "observation", "value": text} for text in ("42", "7")]
    said = [{"from": "human", "value": ASKED["content"]}, *said, {"from": "gpt", "value": FINAL["content"]}]
    return record("conversations", said, tools=json.dumps([SCHEMA, SUB_SCHEMA]))


def list_in_function_call():
    return llama_factory(f"<think>\n{THOUGHT}\n</think>\n{json.dumps([ADD, SUB])}")


def calls_in_a_row():
    return llama_factory(f"<think>{THOUGHT}</think>{json.dumps(ADD)}", json.dumps(SUB))


def thinking_opened_in_the_prompt():
    return llama_factory(f"{THOUGHT}\n</think>\n\n{json.dumps(ADD)}", json.dumps(SUB))


def calls_as_values():
    made = parts_with_value()
    made["messages"][1]["content"][1:] = [{"type": "tool_call", "value": call} for call in (ADD, SUB)]
    return made


def roles_of_other_models():
    made = parts_with_value()
    for message, role in zip(made["messages"], ("user", "model", "ipython", "tool", "bot"), strict=True):
        message["role"] = role
    return made


def parts_with_value():
    said = [
        {"role": "user", "content": [{"type": "text", "value": ASKED["content"]}]},
        {
            "role": "assistant",
            "content": [
                {"type": "reasoning", "value": THOUGHT},
                *({"type": "tool_call", "value": json.dumps(call)} for call in (ADD, SUB)),
            ],
        },
        *({"role": "tool", "content": [{"type": "text", "value": text}]} for text in ("42", "7")),
        {"role": "assistant", "content": [{"type": "text", "value": FINAL["content"]}]},
    ]
    return record("messages", said)


def anthropic():
    uses = [
        {"type": "tool_use", "id": f"t{index}", "name": call["name"], "input": call["arguments"]}
        for index, call in enumerate((ADD, SUB))
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "7"},
        {"type": "tool_result", "tool_use_id": "t0", "content": [{"type": "text", "text": "42"}]},
    ]
    thinking = {"type": "thinking", "thinking": THOUGHT, "signature": "x"}
    said = [ASKED, {"role": "assistant", "content": [thinking, *uses]}, {"role": "user", "content": results}]
    tools = [{"name": schema["name"], "input_schema": schema["parameters"]} for schema in (SCHEMA, SUB_SCHEMA)]
    return record("messages", [*said, {"role": "assistant", "content": FINAL_PARTS}], tools=tools)


def responses_items():
    calls = [
        {"type": "function_call", "id": f"fc{i}", "call_id": f"c{i}", "name": call["name"],
         "arguments": json.dumps(call["arguments"]), "status": "completed"}
        for i, call in enumerate((ADD, SUB))
    ]  # fmt: skip
    outputs = [
        {"type": "function_call_output", "call_id": f"c{i}", "output": text} for i, text in ((1, "7"), (0, "42"))
    ]
    thought = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": THOUGHT}], "content": None}
    last = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "It is 42."}]}
    answer = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "<answer>42</answer>"}],
    }
    tools = [{"type": "function", **schema, "strict": None} for schema in (SCHEMA, SUB_SCHEMA)]
    return record("input", [ASKED, thought, *calls, *outputs], output=[last, answer], tools=tools)


def langchain():
    calls = [
        {"name": call["name"], "args": call["arguments"], "id": f"c{i}", "type": "tool_call"}
        for i, call in enumerate((ADD, SUB))
    ]
    said = [
        {"type": "human", "data": {"content": ASKED["content"], "id": None}},
        {"type": "ai", "data": {"content": f"<think>{THOUGHT}</think>", "tool_calls": calls, "invalid_tool_calls": []}},
        *({"type": "tool", "data": {"content": t, "tool_call_id": f"c{i}"}} for i, t in enumerate(("42", "7"))),
        {"type": "ai", "data": {"content": FINAL["content"], "tool_calls": []}},
    ]
    return record("messages", said)


def toolace():
    system = f"You may call these functions:\n{json.dumps([SCHEMA, SUB_SCHEMA])}\nCall them as [f(a=1)]."
    said = [
        {"from": "user", "value": ASKED["content"]},
        {"from": "assistant", "value": f"<think>{THOUGHT}</think>[add(a=20, b=22), sub(a=3)]"},
        {"from": "tool", "value": json.dumps([{"name": "add", "results": 42}, {"name": "sub", "results": "7"}])},
        {"from": "assistant", "value": FINAL["content"]},
    ]
    return record("conversations", said, system=system, tools=None)


def conversations_of_messages():
    said = openai()["messages"][1:]
    calls = [{"function": call, "id": f"c{i}"} for i, call in enumerate((ADD, SUB))]
    said[1] = said[1] | {"reasoning_content": THOUGHT, "tool_calls": calls}
    said[2:3] = [{"role": "tool", "tool_call_id": f"c{i}", "content": text} for i, text in ((1, "7"), (0, "42"))]
    return record("conversations", said)


def json_text():
    messages = conversations_of_messages()["conversations"]
    messages[1] |= {"tool_calls": json.dumps(messages[1]["tool_calls"])}
    return record("messages", json.dumps(messages))


FORMATS = [
    (swift, "openai + tool_call roles (ms-swift)"),
    (list_in_function_call, "sharegpt + function_call messages (LLaMA-Factory)"),
    (calls_in_a_row, "sharegpt + function_call messages (LLaMA-Factory)"),
    (parts_with_value, "openai + content blocks + parts with value (LLaMA-Factory)"),
    (thinking_opened_in_the_prompt, "sharegpt + function_call messages (LLaMA-Factory)"),
    (calls_as_values, "openai + content blocks + parts with value (LLaMA-Factory)"),
    (roles_of_other_models, "openai + content blocks + parts with value (LLaMA-Factory)"),
    (anthropic, "openai + content blocks"),
    (responses_items, "responses"),
    (langchain, "openai + args (LangChain) + type as role"),
    (toolace, "sharegpt + Python calls (ToolACE)"),
    (conversations_of_messages, "sharegpt + role and content"),
    (json_text, "openai + JSON text"),
]


@pytest.mark.parametrize(("make", "form"), FORMATS, ids=[make.__name__ for make, _ in FORMATS])
def test_every_form_becomes_the_same_conversation(make, form):
    conversation = read_conversation(make())
    dialogue = conversation.dialogue
    assert (conversation.form, conversation.id, conversation.reference.answer) == (form, "r1", "42")
    assert [tool["function"]["name"] for tool in conversation.tools] == ["add", "sub"]
    assert dialogue.messages == (ASKED,)
    (turn,) = dialogue.turns
    assert (turn.reasoning, turn.calls, turn.responses) == (THOUGHT, (ADD, SUB), ("42", "7"))
    assert (dialogue.final.reasoning, dialogue.final.answer) == ("It is 42.", "<answer>42</answer>")
    assert dialogue.open_turn is None


@pytest.mark.parametrize("form", [form for _, form in FORMATS])
def test_the_page_names_every_form(form):
    page = (Path(__file__).parent.parent.parent / "docs" / "your_traces.md").read_text(encoding="utf-8")
    name, *forms = form.split(" + ")
    assert f"| `{name}` |" in page
    assert all(f"`{each}`" in page for each in forms)


def test_a_row_of_xlam_waits_for_its_responses():
    tools = [{"name": "add", "description": "Adds.", "parameters": {"a": {"type": "int, optional", "default": ""}}}]
    row = {"id": 3, "query": "What?", "answers": json.dumps([ADD, ADD]), "tools": json.dumps(tools)}
    conversation = read_conversation(row)
    assert (conversation.id, conversation.form) == ("3", "xlam")
    assert conversation.dialogue.open_turn.calls == (ADD, ADD)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert conversation.tools[0]["function"]["parameters"] == schema


def test_text_as_the_input_of_responses():
    record = responses_items()
    record |= {"output": record["input"][1:] + record["output"], "input": ASKED["content"], "instructions": "Be brief."}
    dialogue = read_conversation(record).dialogue
    assert dialogue.messages == ({"role": "system", "content": "Be brief."}, ASKED)
    assert dialogue.turns[0].calls == (ADD, SUB)


def of_messages(*messages, **fields):
    return record("messages", [ASKED, *messages], **fields)


TOOL_42 = {"role": "tool", "content": "42"}
BROKEN = [
    # A mistake is told where it is, not at a later message.
    (of_messages({"role": "assistant", "content": "add(20, 22)"}, TOOL_42), "response without call", "messages[1]"),
    (of_messages({"role": "assistant", "content": "[add(20)]"}, TOOL_42), "response without call", "messages[1]"),
    (of_messages({"role": "tool_call", "content": "add 20"}, TOOL_42), "malformed call", "messages[1].content"),
    (of_messages({"role": "tool_call", "content": "[]"}, TOOL_42), "malformed call", "messages[1].content"),
    (of_messages({"author": "me", "text": "hi"}), "unknown form of a message", "messages[1]"),
    (of_messages({"role": "robot", "content": "hi"}), "unknown role", "messages[1].role"),
    (of_messages({"role": "user", "content": [{"type": "text"}]}), "unknown form of a part", "messages[1].content[0]"),
    (
        of_messages({"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}),
        "content is not text",
        "messages[1].content[0]",
    ),
    (
        of_messages({"role": "assistant", "tool_calls": [{"function": ADD}]}, {"role": "tool", "tool_call_id": ["x"]}),
        "wrong type",
        "messages[2].tool_call_id",
    ),
    (
        of_messages({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "input": {}}]}),
        "malformed call",
        "messages[1].content[0].name",
    ),
    (of_messages({"role": "assistant", "content": ".", "invalid_tool_calls": [1]}), "malformed call", None),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "unknown role", "input[0].type"),
    ({"query": "x", "answers": "[]"}, "malformed call", "answers"),
    ({"prompt": "x", "completion": "y"}, "unknown format", "(the record)"),
]


@pytest.mark.parametrize(("broken", "reason", "field"), BROKEN)
def test_an_unknown_form_is_named_at_its_place(broken, reason, field):
    with pytest.raises(RecordError) as error:
        read_conversation(broken)
    assert error.value.reason == reason
    if field is not None:
        assert error.value.field == field


def test_the_sentence_of_an_unknown_form_names_it():
    for broken, named in (
        ({"prompt": "x", "completion": "y"}, "its fields are 'prompt', 'completion'"),
        (of_messages({"author": "me", "text": "hi"}), "its fields are 'author', 'text'"),
        (of_messages({"role": "assistant", "content": "[add(20)]"}, TOOL_42), "the call of 'add' gives an argument"),
        (of_messages({"role": "user", "content": [{"type": "input_audio"}]}), "'input_audio'"),
        (of_messages({"role": "user", "content": [{"type": "text", "body": "x"}]}), "its fields are 'type', 'body'"),
        ({"input": [{"type": "web_search_call"}]}, "'web_search_call'"),
    ):
        with pytest.raises(RecordError) as error:
            read_conversation(broken)
        assert named in error.value.problem


def test_an_answer_in_brackets_is_no_call():
    final = {"role": "assistant", "content": "[sin(x=1)]"}
    said = openai()["messages"][:4]
    assert read_conversation(record("messages", [*said, final])).dialogue.final.answer == "[sin(x=1)]"


def test_tools_of_a_prompt_that_explains_no_calls_stay_there():
    policy = f"Our policy. {json.dumps([SCHEMA])} Be kind."
    messages = [{"role": "system", "content": policy}, *openai()["messages"][1:]]
    dialogue = read_conversation(record("messages", messages)).dialogue
    assert dialogue.messages[0]["content"] == policy
    hermes = sharegpt()
    assert read_conversation({"messages": hermes["conversations"]}).form == "openai + from and value"


def test_python_calls_are_parsed_and_never_run(tmp_path):
    marker = tmp_path / "ran"
    for code in (
        f"open({str(marker)!r}, 'w')",
        f"__import__('pathlib').Path({str(marker)!r}).touch()",
        "(lambda: 1)()",
    ):
        broken = of_messages({"role": "assistant", "content": f"[add(a={code})]"}, copy.deepcopy(TOOL_42))
        with pytest.raises(RecordError, match="a value that is no literal"):
            read_conversation(broken)
    assert not marker.exists()
    names = of_messages(
        {"role": "assistant", "content": '[Market Trends API(a="x) , [", b=[1, (2, None)], c=false)]'}, TOOL_42
    )
    (call,) = read_conversation(names).dialogue.turns[0].calls
    assert call == {"name": "Market Trends API", "arguments": {"a": "x) , [", "b": [1, [2, None]], "c": False}}

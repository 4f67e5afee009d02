"""A teacher's turn out of a reply: both call formats, and everything that makes a turn malformed."""

import json

import pytest
from hand_made import bundled_renderer
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import chat, native

from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.teacher.endpoint import NativeCall, read_reply
from pact_lightning.teacher.turn import (
    follow_up_message,
    parse_native_call,
    read_teacher_turn,
    response_messages,
    teacher_messages,
)
from pact_lightning.types.prompt import UserTurn

ADD = {"name": "add", "arguments": {"a": 1, "b": "x</tool_call>"}}
BLOCK = f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': {'a': 1}})}\n</tool_call>"


def turn(answer, call_format="native"):
    return read_teacher_turn(read_reply(answer.body), 3, call_format)


def test_a_native_turn():
    read = turn(native(("add", json.dumps(ADD["arguments"])), content="I add.", reasoning_content="Sum."))
    assert (read.problem, read.reasoning, read.calls, read.call_ids) == ("", "Sum.\n\nI add.", (ADD,), ("id-0",))
    assert read.message["reasoning_content"] == "Sum."
    assert read.message["tool_calls"][0]["function"]["arguments"] == json.dumps(ADD["arguments"])


def test_thinking_goes_back_in_the_field_it_came_in_or_not_at_all():
    for field in ("reasoning", "reasoning_content"):
        reply = read_reply(chat("So.", **{field: "Hm."}).body)
        assert read_teacher_turn(reply, 0, "native").message == {"role": "assistant", "content": "So.", field: "Hm."}
        silent = read_teacher_turn(reply, 0, "native", send_reasoning=False)
        assert (silent.message, silent.reasoning) == ({"role": "assistant", "content": "So."}, "Hm.")


def test_a_native_call_without_an_id_gets_one():
    answer = native(("add", ""))
    del answer.body["choices"][0]["message"]["tool_calls"][0]["id"]
    read = turn(answer)
    assert read.call_ids == ("call_3_0",) == tuple(call["id"] for call in read.message["tool_calls"])
    assert read.calls == ({"name": "add", "arguments": {}},)


@pytest.mark.parametrize("thinking", ["<think>\nSum.\n</think>\n\n", "Sum.\n</think>\n\n"])
def test_a_text_turn(thinking):
    read = turn(chat(f"{thinking}{BLOCK}\n{BLOCK}"), "text")
    assert (read.problem, read.reasoning) == ("", "Sum.")
    assert read.calls == ({"name": "add", "arguments": {"a": 1}},) * 2
    assert read.message == {"role": "assistant", "content": f"{thinking}{BLOCK}\n{BLOCK}"}


def test_an_answer_turn():
    for call_format in ("native", "text"):
        read = turn(chat("<think>Done.</think> <answer>4</answer>"), call_format)
        assert (read.problem, read.reasoning, read.answer, read.calls) == ("", "Done.", "<answer>4</answer>", ())


@pytest.mark.parametrize(
    ("answer", "call_format", "says"),
    [
        (native(("add", '{"a": 1')), "native", "arguments are not valid JSON"),
        (native(("add", '{"a": 1, "a": 2}')), "native", "same key twice"),
        (native(("add", '{"a": NaN}')), "native", "NaN"),
        (native(("add", "[1]")), "native", 'no "arguments" object'),
        (native(("", "{}")), "native", 'no "name"'),
        (native(("add", "{}"), finish="length"), "native", "token limit"),
        (chat("<think>and so on"), "native", "thinking does not end"),
        (chat("  "), "native", "neither words nor calls"),
        (chat("<tool_call>add(1)</tool_call>"), "text", "not valid JSON"),
        (chat(BLOCK.removesuffix("</tool_call>")), "text", "not closed"),
        (chat(f"{BLOCK}\n<tool_response>4</tool_response>"), "text", "text behind the first call"),
        (chat("<think>a<think>b</think> 4"), "text", "thinking mark"),
    ],
)
def test_a_malformed_turn(answer, call_format, says):
    assert says in turn(answer, call_format).problem


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), _json, max_size=4), ascii_only=st.booleans())
def test_any_native_call_comes_through_unchanged(name, arguments, ascii_only):
    call = NativeCall("", name, json.dumps(arguments, ensure_ascii=ascii_only))
    parsed = parse_native_call(call)
    assert parsed.call == {"name": name, "arguments": arguments}


@given(st.text())
def test_any_text_for_arguments_is_a_call_or_a_sentence(text):
    parsed = parse_native_call(NativeCall("", "add", text))
    assert (parsed.call is None) == bool(parsed.error)


def test_the_text_prompt_is_the_policys_own():
    """The system turn, follow-ups and responses equal what the renderer writes for the policy."""
    renderer, task = bundled_renderer(), make_task("train", 0)
    prompt = task.prompt
    system, user = prompt.messages
    rendered = renderer.codec.decode(renderer.prompt(prompt.messages, prompt.tools))
    told = teacher_messages(task, "text")[0]["content"]
    assert told.startswith(f"{system['content']}\n\n# Tools\n\n")
    assert rendered == (
        f"<|im_start|>system\n{told}<|im_end|>\n<|im_start|>user\n{user['content']}<|im_end|>\n<|im_start|>assistant\n"
    )
    for content, tools in (("And now?", ()), ("", prompt.tools), ("More.", prompt.tools[:1])):
        message = follow_up_message(UserTurn(content, tools), "text")
        rendered = renderer.codec.decode(renderer.user_turn(UserTurn(content, tools)))
        assert f"user\n{message['content']}<|im_end|>" in rendered
    listed = json.dumps(prompt.tools[0], ensure_ascii=False)
    more = f"More.\n\nFrom here on you may call these functions as well:\n<tools>\n{listed}\n</tools>"
    assert message["content"] == more
    assert follow_up_message(UserTurn("More.", prompt.tools[:1]), "native")["content"] == "More."
    (message,) = response_messages((), ("1", "2"), "text")
    assert message["content"] == "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert f"user\n{message['content']}<|im_end|>" in renderer.codec.decode(renderer.observation(("1", "2")))


def test_nothing_of_reference_or_trace_is_in_the_prompt():
    for index in range(20):
        task = make_task("train", index)
        told = json.dumps([teacher_messages(task, "text"), teacher_messages(task, "native")])
        assert f'"{task.reference.answer}"' not in told
        assert all(turn.reasoning not in told and turn.responses[0] not in told for turn in task.trace.turns)
        assert f"Question: {task.prompt.messages[-1]['content']}" in teacher_messages(task, "native")[-1]["content"]

"""Rendering: Qwen3's format token for token, a wall around outside text, and the right component for every token."""

import json
from itertools import groupby, pairwise

import pytest
from byte_tokenizer import byte_renderer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import Component

R, C, A, D, PROMPT, OBSERVED = (
    Component.REASONING,
    Component.TOOL_CALL,
    Component.ANSWER,
    Component.DELIMITER,
    Component.PROMPT,
    Component.OBSERVATION,
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
MARKS += ["<tool_response>", "</tool_response>"]
CHARACTERS = st.characters(exclude_categories=["Cs"])
PLAIN = st.text(CHARACTERS, max_size=30).filter(lambda text: "<" not in text)
HOSTILE = st.lists(st.sampled_from(MARKS) | st.text(CHARACTERS, max_size=5), max_size=6).map("".join)
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Größe <b>", "parameters": {"type": "object", "properties": {}}},
}
SUB = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
TOOLS_TEXT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "add", "description": "Größe <b>", "parameters": {"type": "object", "properties": {}}}}
{"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
"""  # noqa: E501  # the template's own lines
USER_TEXT = "<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n"
USER = {"role": "user", "content": "How much?"}


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture(scope="module")
def straddling():
    """Has Qwen's kind of token: a full stop together with line breaks (``Ċ`` is the byte of a line break)."""
    return byte_renderer([(".", "Ċ"), (".Ċ", "Ċ")])


def controls(renderer, ids):
    return [index for index in ids if renderer.codec.is_control(index)]


def runs(renderer, ids, components):
    """Neighbouring tokens of one component, as (component, text)."""
    grouped = groupby(zip(ids, components, strict=True), key=lambda pair: pair[1])
    return [(Component(kind), renderer.codec.decode([index for index, _ in pairs])) for kind, pairs in grouped]


def sampled(renderer, text):
    ids = renderer.codec.control(text)
    return runs(renderer, ids, renderer.components(ids))


def expert(renderer, reasoning, calls, answer=""):
    turn = renderer.expert_turn(reasoning, calls, answer)
    return runs(renderer, turn.ids.tolist(), turn.components)


# ---------------------------------------------------------------------------------------------------- the template


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([USER], [ADD, SUB], "<|im_start|>system\n" + TOOLS_TEXT + USER_TEXT),
        (
            [{"role": "system", "content": "Be brief."}, USER],
            [ADD, SUB],
            "<|im_start|>system\nBe brief.\n\n" + TOOLS_TEXT + USER_TEXT,
        ),
        (
            [{"role": "system", "content": "Be brief."}, USER],
            [],
            "<|im_start|>system\nBe brief.<|im_end|>\n" + USER_TEXT,
        ),
        ([USER], [], USER_TEXT),
    ],
    ids=["tools", "system and tools", "system", "user"],
)
def test_prompt_is_the_released_template_token_for_token(renderer, messages, tools, expected):
    ids = renderer.prompt(messages, tools)
    assert renderer.codec.decode(ids) == expected
    assert ids == renderer.codec.control(expected)


@pytest.mark.parametrize("role", ["assistant", "tool", "system"])
def test_a_prompt_of_other_roles_is_refused(renderer, role):
    with pytest.raises(ValueError, match=role):
        renderer.prompt([USER, {"role": role, "content": ""}], [])


CALLS = [{"name": "add", "arguments": {"a": "é", "b": [1, None]}}, {"name": "sub", "arguments": {}}]
CALL_TEXT = (
    '<tool_call>\n{"name": "add", "arguments": {"a": "é", "b": [1, null]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
)


def test_a_whole_dialogue_is_the_template_with_its_thinking_kept(renderer):
    trace = ExpertTrace(
        (ExpertTurn((Chunk("Add first."),), tuple(CALLS), ("3", "{}")),),
        final=ExpertTurn((Chunk("Done."),), answer="<answer>3</answer>"),
    )
    ids = renderer.prompt([USER], [ADD, SUB]) + render_trace(renderer, trace, with_final=True).ids.tolist()
    text = (
        "<|im_start|>system\n"
        + TOOLS_TEXT
        + USER_TEXT
        + "<think>\nAdd first.\n</think>\n\n"
        + CALL_TEXT
        + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n{}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nDone.\n</think>\n\n<answer>3</answer><|im_end|>"
    )
    assert renderer.codec.decode(ids) == text
    assert ids == renderer.codec.control(text)


@given(system=PLAIN, user=PLAIN, description=PLAIN, response=PLAIN, reasoning=PLAIN, value=PLAIN)
@settings(max_examples=50, deadline=None)
def test_pieces_encode_as_the_whole_text_at_once(renderer, system, user, description, response, reasoning, value):
    tool = {"type": "function", "function": {"name": "f", "description": description, "parameters": {}}}
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    prompt = renderer.prompt(messages, [tool])
    shown = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in (ADD, SUB))
    tools_text = TOOLS_TEXT.replace(shown, json.dumps(tool, ensure_ascii=False))
    expected = (
        f"<|im_start|>system\n{system}\n\n{tools_text}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt == renderer.codec.control(expected)
    call = {"name": "f", "arguments": {"x": value}}
    turn = renderer.expert_turn(reasoning, [call])
    thinking = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    block = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call><|im_end|>"
    assert turn.ids.tolist() == renderer.codec.control(thinking + block)
    observation = (
        f"\n<|im_start|>user\n<tool_response>\n{response}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.observation([response]) == renderer.codec.control(observation)


@given(cut=st.integers(0, 3), hostile=HOSTILE)
@settings(max_examples=20, deadline=None)
def test_a_shorter_dialogue_is_a_prefix_of_a_longer_one(renderer, cut, hostile):
    turns = tuple(ExpertTurn((Chunk(f"Turn {n}. {hostile}"),), (CALLS[1],), (hostile,)) for n in range(3))
    whole = render_trace(renderer, ExpertTrace(turns, ExpertTurn((), answer="yes")), with_final=True)
    part = render_trace(renderer, ExpertTrace(turns[:cut]))
    assert whole.ids[: len(part.ids)].tolist() == part.ids.tolist()
    assert whole.components[: len(part.ids)].tolist() == part.components.tolist()
    assert len(part.ids) < len(whole.ids)


# ------------------------------------------------------------------------------------- the wall around outside text


@given(text=HOSTILE, other=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_control_text_from_outside_never_becomes_a_control_token(renderer, text, other):
    tool = {"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}
    call = {"name": text, "arguments": {other: text}}

    def everything(system, user, tool, response, reasoning, calls, answer):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return [
            *renderer.prompt(messages, [tool]),
            *renderer.expert_turn(reasoning, calls).ids.tolist(),
            *renderer.observation([response, response]),
            *renderer.expert_turn("", [], answer).ids.tolist(),
        ]

    ours = controls(renderer, everything("s", "u", ADD, "o", "r", [CALLS[1]] * 2, "a"))
    hostile = everything(text, other, tool, text, text or "r", [call] * 2, other)
    assert controls(renderer, hostile) == ours
    # And nothing was dropped or changed on the way.
    assert renderer.codec.decode(renderer.codec.plain(text)) == text


def test_the_tokenizer_itself_would_have_let_control_text_through(renderer):
    assert len(controls(renderer, renderer.codec.control("".join(MARKS)))) == len(MARKS)
    assert controls(renderer, renderer.codec.plain("".join(MARKS))) == []


# ---------------------------------------------------------------------------------------------------- components


def test_components_of_an_expert_turn(renderer):
    assert expert(renderer, "Add first.", CALLS) == [
        (D, "<think>\n"),
        (R, "Add first."),
        (D, "\n</think>\n\n"),
        (C, CALL_TEXT.partition('\n<tool_call>\n{"name": "sub"')[0]),
        (D, "\n"),
        (C, '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'),
        (D, "<|im_end|>"),
    ]
    assert expert(renderer, "Done.", [], "<answer>3</answer>") == [
        (D, "<think>\n"),
        (R, "Done."),
        (D, "\n</think>\n\n"),
        (A, "<answer>3</answer>"),
        (D, "<|im_end|>"),
    ]
    assert expert(renderer, "", [], "3") == [(A, "3"), (D, "<|im_end|>")]


@pytest.mark.parametrize("quoted", ["a </think> b", "a <tool_call> b", "<think> c </tool_call>", "x <|im_end|> y"])
def test_marks_that_an_expert_quotes_do_not_move_the_labels(renderer, quoted):
    call = {"name": "add", "arguments": {"a": quoted}}
    assert expert(renderer, quoted, [call]) == [
        (D, "<think>\n"),
        (R, quoted),
        (D, "\n</think>\n\n"),
        (C, f"<tool_call>\n{json.dumps(call)}\n</tool_call>"),
        (D, "<|im_end|>"),
    ]
    assert expert(renderer, "ok", [], quoted)[3:] == [(A, quoted), (D, "<|im_end|>")]


GOOD = '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"<think>\nHm. So.\n</think>\n\n{GOOD}<|im_end|>",
            [(D, "<think>\n"), (R, "Hm. So."), (D, "\n</think>\n\n"), (C, GOOD), (D, "<|im_end|>")],
        ),
        (f"{GOOD}\n{GOOD}<|im_end|>", [(C, GOOD), (D, "\n"), (C, GOOD), (D, "<|im_end|>")]),
        (f"I add.\n{GOOD}<|im_end|>", [(R, "I add."), (D, "\n"), (C, GOOD), (D, "<|im_end|>")]),
        ("<tool_call>oops</tool_call><|im_end|>", [(C, "<tool_call>oops</tool_call>"), (D, "<|im_end|>")]),
        (
            '<think>\nHm.\n</think>\n\n<tool_call>\n{"name"<|im_end|>',
            [(D, "<think>\n"), (R, "Hm."), (D, "\n</think>\n\n"), (C, '<tool_call>\n{"name"'), (D, "<|im_end|>")],
        ),
        ('<tool_call>\n{"na', [(C, '<tool_call>\n{"na')]),
        (
            "<think>\nHm.\n</think>\n\n<answer>3</answer><|im_end|>",
            [(D, "<think>\n"), (R, "Hm."), (D, "\n</think>\n\n"), (A, "<answer>3</answer>"), (D, "<|im_end|>")],
        ),
        ("Three.<|im_end|>", [(A, "Three."), (D, "<|im_end|>")]),
        ("Three", [(A, "Three")]),
        ("<think>\nHm. Three", [(D, "<think>\n"), (R, "Hm. Three")]),
        (f"<think>\nHm {GOOD}<|im_end|>", [(D, "<think>\n"), (R, f"Hm {GOOD}"), (D, "<|im_end|>")]),
        ("<|im_end|>", [(D, "<|im_end|>")]),
        ("<think></think><|im_end|>", [(D, "<think></think><|im_end|>")]),
        ("größe 😀<|im_end|>", [(A, "größe 😀"), (D, "<|im_end|>")]),
        (
            "<think>\nñandú 😀\n</think>\n\nÿ<|im_end|>",
            [(D, "<think>\n"), (R, "ñandú 😀"), (D, "\n</think>\n\n"), (A, "ÿ"), (D, "<|im_end|>")],
        ),
    ],
)
def test_components_of_a_sampled_turn(renderer, text, expected):
    assert sampled(renderer, text) == expected


def test_a_token_that_straddles_belongs_to_what_it_begins_in(straddling):
    assert sampled(straddling, "<think>\nHm.\n</think>\n\nOk.\n\n<|im_end|>") == [
        (D, "<think>\n"),
        (R, "Hm.\n"),
        (D, "</think>\n\n"),
        (A, "Ok.\n\n"),
        (D, "<|im_end|>"),
    ]


def test_an_id_without_text_is_no_obstacle(renderer):
    unused = len(renderer.codec.tokenizer) + 5
    assert renderer.codec.token_bytes(unused) == b""
    assert renderer.components([unused]).tolist() == [D]
    ids = [*renderer.codec.control("Three"), unused, renderer.end_of_turn]
    assert renderer.components(ids).tolist()[-1] == D
    assert renderer.read_turn(ids).answer == "Three"


@given(st.lists(st.integers(0, 1162), min_size=1, max_size=40))
@settings(deadline=None)
def test_segments_join_to_the_ids_whatever_was_sampled(renderer, ids):
    segments = renderer.turn_segments(ids, 7)
    assert [index for segment in segments for index in segment.ids] == ids
    assert all(segment.turn == 7 and segment.ids for segment in segments)
    assert all(left.component != right.component for left, right in pairwise(segments))
    flat = [int(segment.component) for segment in segments for _ in segment.ids]
    assert flat == renderer.components(ids).tolist()
    assert not {PROMPT, OBSERVED} & {segment.component for segment in segments}
    # Calls are labelled exactly where they are read.
    assert (C in flat) == bool(renderer.read_turn(ids).parsed)


def test_bytes_of_tokens_join_to_the_text(renderer):
    text = "ñ 😀 <think>\n" + "".join(MARKS)
    ids = renderer.codec.control(text)
    assert b"".join(renderer.codec.token_bytes(index) for index in ids).decode() == text


# ------------------------------------------------------------------------------------------------- reading a turn


def test_a_turn_is_read_into_reasoning_calls_and_answer(renderer):
    turn = renderer.read_turn(renderer.codec.control(f"<think>\n Hm. \n</think>\n\n{GOOD}\n<tool_call>x<|im_end|>"))
    assert (turn.reasoning, turn.answer) == ("Hm.", "")
    assert [entry.call for entry in turn.parsed] == [{"name": "sub", "arguments": {}}, None]
    assert "not closed" in turn.parsed[1].error
    answered = renderer.read_turn(renderer.codec.control("<think>\nHm.\n</think>\n\n <answer>3</answer><|im_end|>"))
    assert (answered.reasoning, answered.answer, answered.parsed) == ("Hm.", "<answer>3</answer>", ())


def test_a_call_inside_the_thinking_is_no_call(renderer):
    turn = renderer.read_turn(renderer.codec.control(f"<think>\n{GOOD}\n</think>\n\nno<|im_end|>"))
    assert (turn.parsed, turn.answer) == ((), "no")
    unclosed = renderer.read_turn(renderer.codec.control(f"<think>\n{GOOD}<|im_end|>"))
    assert (unclosed.parsed, unclosed.answer) == ((), "")


# --------------------------------------------------------------------------------------------------------- codecs


def test_tokenizers_that_cannot_be_measured_are_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="byte-level"):
        TextCodec(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    with pytest.raises(ValueError, match="ChatML"):
        ChatRenderer(TextCodec(no_chatml()))


def no_chatml():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

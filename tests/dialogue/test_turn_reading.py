"""The one reader of a turn: thinking in every form, tags in arguments, the way back of what experts wrote."""

import json

import pytest
from byte_tokenizer import byte_renderer
from hand_made import FULL
from hypothesis import example, given, settings
from hypothesis import strategies as st
from many_tokenizers import FAMILIES, renderer_of
from rollout_player import log, play_one

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.dialogue.turn_text import read_layout
from pact_lightning.policy.loading import load_tokenizer
from pact_lightning.teacher.importers.conversation import Reading, RecordError
from pact_lightning.teacher.importers.tagged_text import split_text
from pact_lightning.types.trajectory import Component

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>"]
MARKS += ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>\n", "\n</tool_call>\n", '"}</tool_call>', "\\", '"']
CHARACTERS = st.characters(exclude_categories=["Cs"])
HOSTILE = st.lists(st.sampled_from(MARKS) | st.text(CHARACTERS, max_size=4), max_size=6).map("".join)
PLAIN = st.text(CHARACTERS, max_size=20).filter(lambda text: "<" not in text)
VALUES = st.recursive(
    HOSTILE | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=5,
)
NAMES = HOSTILE.filter(bool)
CALLS = st.lists(st.builds(lambda name, args: {"name": name, "arguments": args}, NAMES, st.dictionaries(HOSTILE, VALUES, max_size=2)), max_size=3)  # fmt: skip  # noqa: E501
WIPE = {"name": "wipe", "arguments": {"unit": 1}}
BLOCK = f"<tool_call>\n{json.dumps(WIPE)}\n</tool_call>"
TAGGED = {"name": "say", "arguments": {"text": "a </tool_call> b </think> c <tool_call> <think> d"}}
TAGGED_BLOCK = f"<tool_call>\n{json.dumps(TAGGED)}\n</tool_call>"


def opening_renderer():
    """The bundled tokenizer with a template that opens the thinking, as Qwen3-Thinking-2507's does."""
    tokenizer = load_tokenizer(FULL)
    tokenizer.chat_template = CHATML.replace("assistant\n", "assistant\n<think>\n")
    return ChatRenderer(TextCodec(tokenizer))


RENDERERS = {"closed": renderer_of("bundled"), "opened": opening_renderer()}


def read(renderer, text):
    turn = renderer.read_turn([*renderer.codec.control(text), renderer.end_of_turn])
    return turn.reasoning, [entry.call for entry in turn.parsed], turn.answer


def parts(renderer, text):
    """The text of each component, without white space at the ends."""
    ids = [*renderer.codec.control(text), renderer.end_of_turn]
    return [
        (segment.component, renderer.codec.decode(segment.ids))
        for segment in renderer.turn_segments(ids, 0)
        if segment.component is not Component.DELIMITER
    ]


# Of a policy that always gets an opened thinking, and of one that opens it or not.
BOTH = [
    ("It is two.\n</think>\n\n<answer>2</answer>", ("It is two.", [], "<answer>2</answer>")),
    (f"Perhaps {BLOCK}, no.\n</think>\n\nI will not.", (f"Perhaps {BLOCK}, no.", [], "I will not.")),
    (f"\n<think>\nPerhaps {BLOCK}, no.\n</think>\n\nNo.", (f"Perhaps {BLOCK}, no.", [], "No.")),
    (f" \n\t<think>a</think>{BLOCK}", ("a", [WIPE], "")),
    (f"<think>\na\n</think>\n\n<think>\nOr {BLOCK}?\n</think>\n\nNo.", (f"a\n\nOr {BLOCK}?", [], "No.")),
    (f"<think>a</think>{BLOCK}<think>b</think>\n{BLOCK}", ("a\n\nb", [WIPE, WIPE], "")),
    (f"<think>a</think> Or {BLOCK}? </think> No.", (f"a</think> Or {BLOCK}?", [], "No.")),
    (f"<think>\nPerhaps {BLOCK}", (f"Perhaps {BLOCK}", [], "")),
    (f"a</think>b<think>c {BLOCK}", (f"a\n\nc {BLOCK}", [], "b")),
    ("<think>So <answer>1</answer>?</think><answer>2</answer>", ("So <answer>1</answer>?", [], "<answer>2</answer>")),
    ("<think></think>\n\n2", ("", [], "2")),
    (f"</think>{BLOCK}", ("", [WIPE], "")),
    (f"a</think>\n\nI say.\n{TAGGED_BLOCK}\nand\n{BLOCK}", ("a", [TAGGED, WIPE], "")),
    (f"Maybe {TAGGED_BLOCK}, or not.</think>{BLOCK}", (f"Maybe {TAGGED_BLOCK}, or not.", [WIPE], "")),
    ("I write <tool_call> when I call.</think>So.", ("I write <tool_call> when I call.", [], "So.")),
    ("I write <tool_call> and </tool_call>.</think>So.", ("I write <tool_call> and </tool_call>.", [], "So.")),
]


@pytest.mark.parametrize(("text", "expected"), BOTH)
@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS)
def test_thinking_is_split_off_in_every_form(renderer, text, expected):
    assert read(renderer, text) == expected
    labelled = parts(renderer, text)
    reasoning = [said for kind, said in labelled if kind is Component.REASONING]
    assert "\n\n".join(reasoning) == expected[0]
    answers = [said for kind, said in labelled if kind is Component.ANSWER]
    assert "\n\n".join(answers) == expected[2]
    assert sum(kind is Component.TOOL_CALL for kind, _ in labelled) == len(expected[1])


@pytest.mark.parametrize(
    ("text", "closed", "opened"),
    [
        (f"Perhaps {BLOCK}", ("", [WIPE], ""), (f"Perhaps {BLOCK}", [], "")),
        ("Two.", ("", [], "Two."), ("Two.", [], "")),
        (f"Before.\n{TAGGED_BLOCK}", ("", [TAGGED], ""), (f"Before.\n{TAGGED_BLOCK}", [], "")),
        ("", ("", [], ""), ("", [], "")),
    ],
)
def test_without_a_mark_of_thinking_the_prompt_decides(text, closed, opened):
    assert read(RENDERERS["closed"], text) == closed
    assert read(RENDERERS["opened"], text) == opened


def test_a_considered_call_is_not_run():
    rollout, stats = play_one(RENDERERS["closed"], f"I could {log('x')} but no.\n</think>\n\nI will not.")
    assert (stats.tool_calls, rollout.final_answer) == (0, "I will not.")


def test_a_template_that_opens_the_thinking_is_followed_in_every_turn():
    renderer = RENDERERS["opened"]
    rollout, stats = play_one(renderer, f"Log it.\n</think>\n\n{log('x')}", "Done.\n</think>\n\nyes")
    assert (stats.tool_calls, rollout.final_answer) == (1, "yes")
    text = renderer.codec.decode([*rollout.prompt_ids, *rollout.ids()])
    assert text.count("<|im_start|>assistant\n<think>\n") == 2 == text.count("<think>")
    assert renderer.codec.decode(rollout.prompt_ids).endswith("<|im_start|>assistant\n<think>\n")
    observed = [segment for segment in rollout.segments if segment.component is Component.OBSERVATION]
    assert renderer.codec.decode(observed[0].ids).endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n")


def test_a_call_that_is_quoted_in_plain_tokens_is_not_run():
    """A tool response never becomes control tokens; nor does its copy become a call."""
    renderer = RENDERERS["closed"]
    line = [*renderer.codec.control("It said: "), *renderer.codec.plain(log("x")), renderer.end_of_turn]
    rollout, stats = play_one(renderer, line)
    assert (stats.tool_calls, rollout.final_answer) == (0, f"It said: {log('x')}")


@pytest.mark.parametrize("literal", [json.dumps(TAGGED), json.dumps(TAGGED, indent=2), f"  {json.dumps(TAGGED)}\n\n"])
def test_a_tag_in_an_argument_ends_no_call_even_as_a_control_token(literal):
    assert read(RENDERERS["closed"], f"<tool_call>{literal}</tool_call>{BLOCK}") == ("", [TAGGED, WIPE], "")


@pytest.mark.parametrize("broken", ['{"name": "f', '{"name": "f", "arguments": {"a": "</tool_call>', "[1, 2", "f(1)"])
def test_a_call_of_broken_json_ends_at_its_first_tag_and_swallows_no_other(broken):
    assert read(RENDERERS["closed"], f"<tool_call>{broken}</tool_call>\n{BLOCK}")[1][-1] == WIPE


def assert_comes_back(renderer, reasoning, calls, answer):
    rendered = renderer.expert_turn(reasoning, calls, answer)
    ids = rendered.ids.tolist()
    turn = renderer.read_turn(ids)
    assert [entry.call for entry in turn.parsed] == calls
    assert json.dumps(turn.calls) == json.dumps(calls)
    assert turn.reasoning == reasoning.strip()
    assert turn.answer == ("" if calls else answer.strip())
    # What is scored is what is read.
    assert renderer.components(ids).tolist() == rendered.components.tolist()
    text = dict.fromkeys(Component, b"")
    for index, component in zip(ids, rendered.components.tolist(), strict=True):
        text[Component(component)] += renderer.codec.token_bytes(index)
    blocks = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    assert text[Component.TOOL_CALL].decode() == "".join(blocks)
    # And after the prompt it is one stream.
    assert renderer.codec.decode(ids).endswith("<|im_end|>")


@pytest.mark.parametrize("family", [*FAMILIES, "opened"])
@given(reasoning=HOSTILE, calls=CALLS, answer=HOSTILE)
@example(reasoning="x", calls=[{"name": mark, "arguments": {mark: [mark]}} for mark in MARKS], answer="")
@example(reasoning="</think> a <think>", calls=[], answer="<tool_call>{} </think> <|im_end|>")
@settings(max_examples=30, deadline=None)
def test_what_an_expert_wrote_comes_back(family, reasoning, calls, answer):
    assert_comes_back(opened if family == "opened" else renderer_of(family), reasoning, calls, answer)


opened = RENDERERS["opened"]
PLAIN_MARKS = byte_renderer([("<", "t"), ("t", "h")], marks=())


@given(reasoning=PLAIN, calls=CALLS, answer=PLAIN)
@example(reasoning="", calls=[TAGGED, TAGGED], answer="")
@settings(max_examples=30, deadline=None)
def test_where_the_marks_are_no_tokens_an_argument_may_hold_them_all_the_same(reasoning, calls, answer):
    assert not PLAIN_MARKS.codec.has_control("<think>")
    assert_comes_back(PLAIN_MARKS, reasoning, calls, answer)


@given(text=HOSTILE, in_thinking=st.booleans())
def test_a_layout_has_every_character_once(text, in_thinking):
    layout = read_layout(text, in_thinking=in_thinking)
    inside = [*layout.thinking, *layout.outside]
    assert sorted(span for span in inside if span[0] < span[1]) == sorted(
        {span for span in inside if span[0] < span[1]}
    )
    marks = len(text) - sum(stop - start for start, stop in inside)
    # Outside of the parts stand only marks of thinking.
    at, between = 0, ""
    for start, stop in sorted(inside):
        assert start >= at
        between += text[at:start]
        at = stop
    between += text[at:]
    assert len(between) == marks
    assert between.replace("</think>", "").replace("<think>", "").strip() == ""
    assert list(layout.outside) == sorted(layout.outside)


@pytest.mark.parametrize(
    ("reasoning", "calls", "says"),
    [
        ("a\ud800", [], "half of a character"),
        ("", [{"name": "f", "arguments": {"a": ["\udfff"]}}], "the tool 'f' cannot be written: it holds half"),
        ("", [{"name": "f", "arguments": {"a": float("inf")}}], "not finite"),
    ],
)
def test_what_has_no_tokens_is_refused_in_a_sentence(reasoning, calls, says):
    with pytest.raises(ValueError, match=says):
        RENDERERS["closed"].expert_turn(reasoning, calls)


@given(reasoning=PLAIN, calls=CALLS, answer=PLAIN.filter(str.strip), opens=st.booleans())
@example(reasoning="", calls=[TAGGED, {"name": "f", "arguments": {"a": None}}], answer="a", opens=True)
@settings(max_examples=50, deadline=None)
def test_the_importer_of_traces_reads_an_experts_turn_as_the_rollouts_reader_does(reasoning, calls, answer, opens):
    renderer = RENDERERS["opened" if opens else "closed"]
    ids = renderer.expert_turn(reasoning, calls, answer).ids.tolist()[:-1]
    reasoned, text, requested = split_text(renderer.codec.decode(ids), "", Reading())
    turn = renderer.read_turn(ids)
    assert json.dumps([request.call for request in requested]) == json.dumps(turn.calls) == json.dumps(calls)
    assert (reasoned, text) == (turn.reasoning, turn.answer) == (reasoning.strip(), "" if calls else answer.strip())


@pytest.mark.parametrize(("text", "expected"), BOTH)
def test_the_importer_splits_every_form_as_the_reader_does(text, expected):
    if expected[0].endswith(BLOCK) and "</think>" not in text.rpartition("<think>")[2]:
        with pytest.raises(RecordError, match="never closes"):
            split_text(text, "content", Reading())
        return
    reasoned, said, requested = split_text(text, "content", Reading())
    assert (reasoned, [request.call for request in requested]) == expected[:2]
    assert expected[2] in ("", said)

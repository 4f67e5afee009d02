"""Leaks and malformed turns are named, clean traces pass; traces from calls are well-formed."""

import pytest

from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.traces.replay import trace_from_calls
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern

ADD = {"name": "add", "arguments": {"a": 20, "b": 22}}


def trace(*chunks, response="42"):
    return ExpertTrace((ExpertTurn(tuple(chunks), (ADD,), (response,)),))


class TestLeaks:
    def test_a_clean_trace(self):
        clean = trace(Chunk("The user wants a sum. "), Chunk("add(20, 22)", ChunkType.EXPLICIT_CALL_PREVIEW))
        assert leak_reasons(clean, "42") == []

    def test_a_literal_call_in_a_chunk_labelled_safe(self):
        leaky = trace(Chunk("Hm. "), Chunk("So add(20, 22).", ChunkType.TOOL_SELECTION))
        assert leak_reasons(leaky) == ["Turn 0: chunks that count as safe hold the call literally: 'add('."]

    def test_an_answer_tag_anywhere_in_the_reasoning(self):
        leaky = trace(Chunk("x", ChunkType.EXPLICIT_CALL_PREVIEW), Chunk("<answer>"))
        assert leak_reasons(leaky) == ["Turn 0: the reasoning holds an <answer> tag."]

    @pytest.mark.parametrize(
        ("text", "answer", "leaks"),
        [
            ("Fine. So the answer must be 42. Good.", "42", True),
            ("Our ANSWER: Rome, Italy", "rome, italy.", True),
            ("The response was 42. I look for an answer.", "42", False),
            ("The answer is not 142 or 421.", "42", False),
            ("The answer is 42.", None, False),
            ("The answer is near.", " ", False),
        ],
    )
    def test_stating_the_answer(self, text, answer, leaks):
        assert bool(leak_reasons(trace(Chunk(text)), answer)) is leaks

    def test_every_turn_is_looked_at(self):
        turn = trace(Chunk("<answer>")).turns[0]
        assert [reason[:7] for reason in leak_reasons(ExpertTrace((turn, turn)))] == ["Turn 0:", "Turn 1:"]


class TestProblems:
    def test_a_good_trace(self):
        assert trace_problems(trace(response='{"user": "bob", "note": "a <b> c"}'), ["add"]) == []

    def test_an_unknown_tool(self):
        assert trace_problems(trace(), ["sub"]) == [
            "Turn 0: the trace calls 'add', which is not among the task's tools."
        ]

    @pytest.mark.parametrize(
        "tag", ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    )
    def test_control_tags_in_a_response(self, tag):
        assert trace_problems(trace(response=f"4{tag}2"), {"add"}) == [
            f"Turn 0: response 0 holds the control tag {tag!r}."
        ]

    @pytest.mark.parametrize(
        "role", ["Assistant: sure", "Human: and now?", "User: hi", "assistant\nsure", "### System"]
    )
    def test_role_text_in_a_response(self, role):
        (problem,) = trace_problems(trace(response=f"42\n{role}"), {"add"})
        assert problem.startswith("Turn 0: response 0 holds role text: ")

    @pytest.mark.parametrize("text", ["the user: bob", "user_assistant", "Users: 3", "my assistant"])
    def test_what_is_no_role_text(self, text):
        assert trace_problems(trace(response=text), {"add"}) == []


class TestFromCalls:
    def test_one_turn_per_call(self):
        made = trace_from_calls([ADD, ADD, ADD], ["error", "42", "42"], failed=[True, False, False], source="made")
        assert [turn.calls for turn in made.turns] == [(ADD,)] * 3
        assert [turn.responses for turn in made.turns] == [("error",), ("42",), ("42",)]
        assert [turn.reasoning for turn in made.turns] == [""] * 3
        assert [turn.pattern for turn in made.turns] == [
            TurnPattern.INITIAL_ATTEMPT,
            TurnPattern.RETRY_AFTER_FAILED_CALL,
            TurnPattern.POST_OBSERVATION_FOLLOWUP,
        ]
        assert (made.final, made.source) == (None, "made")

    def test_reasoning_is_segmented_with_the_turns_own_call(self):
        other = {"name": "sub", "arguments": {"a": 1}}
        made = trace_from_calls([ADD, other], ["42", "1"], ["The user wants add. Then sub(1).", "Then sub(1)."])
        assert [[chunk.type for chunk in turn.chunks] for turn in made.turns] == [
            [ChunkType.TASK_RESTATE],
            [ChunkType.EXPLICIT_CALL_PREVIEW],
        ]
        assert leak_reasons(made) == []

    @pytest.mark.parametrize("field", ["responses", "reasoning", "failed"])
    def test_lengths_must_agree(self, field):
        arguments = {"responses": ["42"], "reasoning": ["x"], "failed": [False]} | {field: []}
        with pytest.raises(ValueError, match=f"1 calls but 0 entries in {field}"):
            trace_from_calls([ADD], **arguments)

    def test_no_calls_no_trace(self):
        with pytest.raises(ValueError, match="at least one call"):
            trace_from_calls([], [])

"""Reasoning is cut into chunks that cover it exactly, and whatever previews the call is in no prefix."""

import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.dialogue.tool_text import parse_tool_calls
from pact_lightning.traces.levels import UNSAFE_TYPES, prefix_ends
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.types.trace import Chunk, ChunkType, TurnPattern

CALL = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
T = ChunkType


def types(reasoning, calls=(CALL,)):
    return [chunk.type for chunk in segment_reasoning(reasoning, calls)]


def texts(reasoning, calls=(CALL,)):
    return [chunk.text for chunk in segment_reasoning(reasoning, calls)]


def l4(reasoning, calls=(CALL,)):
    return reasoning[: prefix_ends(segment_reasoning(reasoning, calls), calls)[4]]


class TestTypes:
    def test_a_typical_first_turn(self):
        paragraphs = [
            "The user wants to know whether it will rain.\n\n",
            "Let me check which tools are listed: get_weather, get_news.\n \n",
            "The tool called get_weather is designed for this.\n\n",
            "It requires a city parameter; the user provided one.\n\n",
            "The unit is optional and defaults to Celsius.\n\n",
            "The other tools are unrelated.\n\n\n",
            "Therefore the next step is clear.\n\n",
            "I will call it now.",
        ]
        chunks = segment_reasoning("".join(paragraphs), [CALL])
        assert [chunk.text for chunk in chunks] == paragraphs
        assert [chunk.type for chunk in chunks] == [
            T.TASK_RESTATE,
            T.TOOL_SCAN,
            T.TOOL_SELECTION,
            T.REQUIRED_ARG_GROUNDING,
            T.OPTIONAL_ARG_ANALYSIS,
            T.IRRELEVANT_TOOL_REJECTION,
            T.DECISION_SUMMARY,
            T.EXPLICIT_CALL_PREVIEW,
        ]

    def test_a_turn_after_a_failure(self):
        reasoning = "The previous call returned an error.\n\nAlternatively, retry in another way.\n\nHm."
        assert types(reasoning) == [T.FAILURE_REFLECTION, T.FALLBACK_PLAN, T.OTHER]

    def test_lines_are_units_where_no_blank_line_is_and_other_joins_its_neighbour(self):
        reasoning = "Okay.\nThe user wants rain data.\nThey asked today.\nHm.\nThe unit is optional.\nI will call it: x"
        assert segment_reasoning(reasoning, [CALL]) == (
            Chunk("Okay.\nThe user wants rain data.\nThey asked today.\nHm.\n", T.TASK_RESTATE),
            Chunk("The unit is optional.\n", T.OPTIONAL_ARG_ANALYSIS),
            Chunk("I will call it: x", T.EXPLICIT_CALL_PREVIEW),
        )

    def test_other_joins_no_unsafe_neighbour(self):
        reasoning = "Okay.\nI will call it.\nHm.\nThe unit is optional."
        assert segment_reasoning(reasoning, [CALL]) == (
            Chunk("Okay.\n", T.OTHER),
            Chunk("I will call it.\n", T.EXPLICIT_CALL_PREVIEW),
            Chunk("Hm.\nThe unit is optional.", T.OPTIONAL_ARG_ANALYSIS),
        )

    def test_a_long_single_paragraph_is_cut_by_sentences_and_a_short_one_is_not(self):
        sentences = ["The user asks for rain. ", "The unit is optional. "]
        assert texts("".join(sentences)) == ["".join(sentences)]
        padded = ["The user asks for rain" + " again" * 40 + ". ", "The unit is optional. "]
        assert texts("".join(padded)) == padded

    def test_abbreviations_and_version_numbers_do_not_end_sentences(self):
        reasoning = "The user asks for e.g. version 1.2 of it" + " again" * 40 + ". The unit is optional."
        assert texts(reasoning)[1] == "The unit is optional."

    def test_empty_and_blank(self):
        assert segment_reasoning("", [CALL]) == ()
        assert segment_reasoning(" \n\n ", [CALL]) == (Chunk(" \n\n "),)

    def test_fallback_is_type_other_and_naming_the_tool_is_enough_for_a_preview(self):
        reasoning = "Der Nutzer will Regen.\n\nDazu passt get_weather gut.\n\nAlso los."
        assert types(reasoning) == [T.OTHER, T.EXPLICIT_CALL_PREVIEW, T.OTHER]
        assert l4(reasoning) == "Der Nutzer will Regen.\n\n"
        # A text that the rules do understand may name the tool.
        assert T.EXPLICIT_CALL_PREVIEW not in types("The user wants rain.\n\nSo get_weather fits.\n\nHm.")


class TestPreviews:
    @pytest.mark.parametrize(
        "preview",
        [
            "I will call it.",
            "I’ll now call get_weather.",
            "Let me go ahead and invoke the tool.",
            "Let me make the tool call.",
            "So calling it with those values is right.",
            "The tool call should be: see below",
            "Here is the function call.",
            "So get_weather, Paris and 3 days.",
            "So get_weather, PARIS and 3.0 days.",
            'So {"city": "Paris", "days": 3} it is.',
            "So {'days': 3, 'city': 'Paris'} it is.",
            'So {"name": "get_weather"} it is.',
            "So get_weather(city) it is.",
            "So get_weather (city=1) it is.",
            "So <tool_call> it is.",
        ],
    )
    def test_only_the_tail_of_the_paragraph_is_the_preview(self, preview):
        head = "The user wants to know about rain. The unit is not mentioned! "
        chunks = segment_reasoning(head + preview, [CALL])
        assert [chunk.text for chunk in chunks] == [head, preview]
        assert chunks[1].type is T.EXPLICIT_CALL_PREVIEW

    @pytest.mark.parametrize(
        "harmless",
        [
            "The tool get_weather (a good one) is relevant.",
            "The tool get_weather needs a city, say Paris.",
            "The user provided Paris and 3 as arguments.",
            "There is a tool called get_weather.",
            "Calls are cheap.",
            'The user said {"city": "Rome"}.',
        ],
    )
    def test_grounding_is_no_preview(self, harmless):
        assert not UNSAFE_TYPES & set(types(harmless))

    def test_a_call_without_arguments_is_previewed_by_its_syntax_or_a_phrase_only(self):
        call = {"name": "list_all", "arguments": {}}
        assert types("The tool list_all is relevant.", [call]) == [T.TOOL_SELECTION]
        assert types("list_all() is relevant.", [call]) == [T.EXPLICIT_CALL_PREVIEW]

    def test_a_value_with_full_stops_and_line_breaks_does_not_hide_the_preview(self):
        call = {"name": "send", "arguments": {"text": "Hi. There\n\nYou go."}}
        reasoning = "The user wants it.\n\nSo send should say Hi. There\n\nYou go. That is all."
        assert l4(reasoning, [call]) == "The user wants it.\n\n"

    def test_a_pretty_printed_call_over_several_paragraphs_is_preview_throughout(self):
        reasoning = 'The user wants rain.\n\n{\n\n"city": "Paris",\n\n"days": 3\n\n}\n\nThe unit is optional.'
        kinds = types(reasoning)
        assert kinds[0] is T.TASK_RESTATE
        assert kinds[1:5] == [T.EXPLICIT_CALL_PREVIEW] * 4
        assert l4(reasoning) == "The user wants rain.\n\n"

    def test_stating_the_answer_is_final_answer_grounding_and_ends_the_prefix(self):
        reasoning = "The user asks about rain.\n\nThe user's question is easy. The answer is 42. Good."
        assert types(reasoning) == [T.TASK_RESTATE, T.TASK_RESTATE, T.FINAL_ANSWER_GROUNDING]
        assert l4(reasoning) == "The user asks about rain.\n\nThe user's question is easy. "


WORDS = st.sampled_from(
    (
        *("The user wants rain", "the unit is optional", "get_weather", "Paris", "3", "tool", "I will call it"),
        *(". ", "? ", ":", "(", "{", "}", " ", "\n", "\n\n", "İ", "’", "the answer is"),
    )
)
PROSE = st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=25).map("".join))


@given(PROSE)
@settings(deadline=None)
def test_chunks_join_to_the_reasoning_exactly(reasoning):
    chunks = segment_reasoning(reasoning, [CALL])
    assert "".join(chunk.text for chunk in chunks) == reasoning
    assert all(chunk.text for chunk in chunks)
    assert segment_reasoning(reasoning, [CALL]) == chunks


LITERAL = st.sampled_from(
    [
        json.dumps(CALL),
        json.dumps(CALL, indent=2),
        json.dumps(CALL["arguments"]),
        json.dumps(json.dumps(CALL)),
        repr(CALL["arguments"]),
        '{ "days":3 , "city":"Paris" }',
        'get_weather(city="Paris", days=3)',
        "<tool_call>",
    ]
)
PHRASE = st.sampled_from(["I will call it: ", "Let me invoke that: ", "The tool call is: ", "Here is the call - "])


@given(PROSE, LITERAL, PROSE)
@settings(max_examples=300, deadline=None)
def test_an_inserted_literal_call_starts_outside_every_prefix(before, preview, after):
    ends = prefix_ends(segment_reasoning(before + preview + after, [CALL]), [CALL])
    assert max(ends) <= len(before)


@given(PROSE, PHRASE, PROSE)
@settings(deadline=None)
def test_an_inserted_introduction_starts_outside_every_prefix(before, preview, after):
    ends = prefix_ends(segment_reasoning(f"{before} {preview}{after}", [CALL]), [CALL])
    assert max(ends) <= len(before) + 1


class TestTurnPattern:
    @pytest.mark.parametrize(
        ("index", "failed", "chunk_types", "final", "expected"),
        [
            (0, False, [], False, TurnPattern.INITIAL_ATTEMPT),
            (0, False, [T.TOOL_SCAN], False, TurnPattern.INITIAL_ATTEMPT),
            (0, False, [T.TOOL_SCAN, T.TOOL_SELECTION], False, TurnPattern.COMPARE_THEN_CALL),
            (0, False, [T.IRRELEVANT_TOOL_REJECTION], False, TurnPattern.COMPARE_THEN_CALL),
            (1, True, [T.TOOL_SCAN, T.TOOL_SELECTION], False, TurnPattern.RETRY_AFTER_FAILED_CALL),
            (2, False, [], False, TurnPattern.POST_OBSERVATION_FOLLOWUP),
            (2, True, [], True, TurnPattern.FINAL_ANSWER_TURN),
        ],
    )
    def test_golden(self, index, failed, chunk_types, final, expected):
        assert turn_pattern(index, failed, [Chunk("x", kind) for kind in chunk_types], final) is expected

    def test_a_negative_index_is_refused(self):
        with pytest.raises(ValueError, match="count turns from 0"):
            turn_pattern(-1, False, [], False)


def teacher_turns(path):
    """Reasoning and calls of each row.

    The rows write "parameters" for "arguments" and put several objects, one a line, into one block; they are brought
    to the form that the project's parser reads. Some mention ``<tool_call>`` in their reasoning, so that is cut first.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        outputs = [json.loads(line)["output"] for line in lines]
    for output in outputs:
        thought, rest = output.split("</think>")
        blocks = re.findall(r"<tool_call>(.*?)</tool_call>", rest, re.DOTALL)
        objects = [json.loads(line) for block in blocks for line in block.strip().splitlines()]
        rewritten = [json.dumps({"name": entry["name"], "arguments": entry["parameters"]}) for entry in objects]
        parsed = parse_tool_calls("".join(f"<tool_call>{entry}</tool_call>" for entry in rewritten))
        assert all(entry.call for entry in parsed)
        yield thought.removeprefix("<think>"), [entry.call for entry in parsed]


def squeeze(text):
    return re.sub(r"[\s\"'\\]", "", text)


@pytest.mark.shared
def test_real_teacher_turns(shared_data):
    rows = list(teacher_turns(shared_data / "toolrl" / "teacher_turns.jsonl.gz"))
    assert len(rows) == 200
    shares = []
    for reasoning, calls in rows:
        chunks = segment_reasoning(reasoning, calls)
        assert "".join(chunk.text for chunk in chunks) == reasoning
        ends = prefix_ends(chunks, calls)
        assert list(ends) == sorted(ends)
        for end in ends:
            prefix, squeezed = reasoning[:end], squeeze(reasoning[:end])
            assert "<tool_call>" not in prefix
            for call in calls:
                assert f"{call['name']}(" not in prefix
                assert "{name:" + squeeze(call["name"]) not in squeezed
                if call["arguments"]:
                    assert squeeze(json.dumps(call["arguments"], ensure_ascii=False)) not in squeezed
        if calls:
            shares.append(ends[4] / len(reasoning))
    assert len(shares) == 166
    # The rules are of use only if they keep most of the reasoning and still find previews in many turns.
    assert 0.6 < sum(shares) / len(shares) < 0.95
    assert min(shares) > 0

"""Levels are cumulative, never decreasing, and end before the first unsafe chunk."""

import json
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.traces.levels import NEVER, UNSAFE_TYPES, literal_call_spans, min_level_at, prefix_ends
from pact_lightning.types.trace import Chunk, ChunkType

CALL = {"name": "add", "arguments": {"a": 1, "b": "two words"}}
PREVIEW = Chunk("so: ", ChunkType.EXPLICIT_CALL_PREVIEW)


def chunks_of(count, length=10):
    return [Chunk("x" * length, ChunkType.OTHER) for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, (0, 0, 0, 0, 0)),
        (1, (0, 10, 10, 10, 10)),
        (2, (0, 10, 10, 20, 20)),
        (3, (0, 10, 20, 20, 30)),
        (4, (0, 10, 20, 30, 40)),
        (7, (0, 10, 30, 50, 70)),
        (10, (0, 10, 40, 70, 100)),
    ],
)
def test_golden_by_number_of_safe_chunks(count, expected):
    assert prefix_ends(chunks_of(count), [CALL]) == expected
    # What stands after an unsafe chunk changes nothing, safe or not.
    assert prefix_ends([*chunks_of(count), PREVIEW, *chunks_of(3)], [CALL]) == expected


@pytest.mark.parametrize("kind", [ChunkType.EXPLICIT_CALL_PREVIEW, ChunkType.FINAL_ANSWER_GROUNDING])
def test_an_unsafe_first_chunk_leaves_nothing(kind):
    assert prefix_ends([Chunk("a", kind), *chunks_of(5)], [CALL]) == (0, 0, 0, 0, 0)


def test_white_space_after_a_chunk_is_inside_its_prefix():
    assert prefix_ends([Chunk("One.\n\n"), Chunk("Two.")], [CALL]) == (0, 6, 6, 10, 10)


@pytest.mark.parametrize("literal", ["add(1)", '{"b": "two words", "a": 1}', "{'name': 'add'", "<tool_call>"])
def test_a_literal_call_in_a_chunk_that_claims_to_be_safe_is_cut_off(literal):
    chunks = [*chunks_of(2), Chunk(f"xx {literal} yy", ChunkType.TOOL_SELECTION), *chunks_of(2)]
    assert prefix_ends(chunks, [CALL]) == (0, 10, 10, 20, 20)


def test_a_literal_call_that_straddles_two_chunks_is_cut_where_it_begins():
    assert prefix_ends([*chunks_of(1), Chunk('so {"a": 1, '), Chunk('"b": "two words"}')], [CALL]) == (
        0,
        10,
        10,
        10,
        10,
    )


CHUNKS = st.lists(
    st.builds(Chunk, st.text(alphabet="ab {}\n", max_size=8), st.sampled_from(list(ChunkType))), max_size=14
)


@given(CHUNKS)
@settings(deadline=None)
def test_prefixes_are_monotone_whole_chunks_and_l4_is_all_before_the_first_unsafe_one(chunks):
    ends = prefix_ends(chunks, [CALL])
    safe = list(takewhile(lambda chunk: chunk.type not in UNSAFE_TYPES, chunks))
    boundaries = [sum(len(chunk.text) for chunk in safe[:count]) for count in range(len(safe) + 1)]
    assert ends[0] == 0
    assert list(ends) == sorted(ends)
    assert ends[1] == (boundaries[1] if safe else 0)
    assert ends[4] == boundaries[-1]
    assert set(ends) <= set(boundaries)


class TestMinLevelAt:
    ENDS = (0, 10, 10, 20, 30)

    @pytest.mark.parametrize(("char_end", "level"), [(1, 1), (10, 1), (11, 3), (20, 3), (21, 4), (30, 4), (31, NEVER)])
    def test_golden(self, char_end, level):
        assert min_level_at(char_end, self.ENDS) == level

    def test_without_a_prefix_nothing_is_ever_active(self):
        assert min_level_at(1, (0, 0, 0, 0, 0)) == 5

    def test_an_empty_span_is_refused(self):
        with pytest.raises(ValueError, match="char_end is 0"):
            min_level_at(0, self.ENDS)

    @given(CHUNKS, st.integers(1, 200))
    @settings(deadline=None)
    def test_a_span_is_active_from_its_level_on(self, chunks, char_end):
        ends = prefix_ends(chunks, [CALL])
        level = min_level_at(char_end, ends)
        assert [char_end <= end for end in ends] == [active >= level for active in range(5)]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(st.sampled_from("abc_"), min_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(st.sampled_from("abc_"), min_size=1, max_size=4), JSON, min_size=1, max_size=4)


@given(st.text(), ARGUMENTS, st.randoms(use_true_random=False), st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_arguments_are_found_however_they_are_written(before, arguments, random, form):
    items = list(arguments.items())
    random.shuffle(items)
    shuffled = dict(items)
    written = [
        json.dumps(shuffled),
        json.dumps(shuffled, ensure_ascii=False, indent=4),
        json.dumps(shuffled, separators=(",", ":")),
        json.dumps(json.dumps(shuffled)),
        repr(shuffled),
    ][form]
    brace = len(before) + written.index("{")
    spans = literal_call_spans(before + written, [{"name": "f", "arguments": arguments}])
    assert any(start == brace for start, _ in spans)


@pytest.mark.parametrize(
    "text",
    [
        "add it up (a lot)",
        "adding",
        '{"a": 1}',
        '{"a": 1, "b": "two"}',
        '{"a": 10, "b": "two words"}',
        "name: add",
        "a: 1, b: two words",
    ],
)
def test_what_is_not_the_literal_call_is_not_found(text):
    assert literal_call_spans(text, [CALL]) == []


def test_positions_hold_when_lower_case_is_longer():
    text = "İİİ add(1)"
    assert literal_call_spans(text, [CALL]) == [(4, 8)]
    text = "İİİ {İ {'a':1,'b':'two words'}"
    assert literal_call_spans(text, [CALL]) == [(7, len(text))]

"""Which reasoning level a token belongs to: levels count characters, tokens hold bytes."""

import numpy as np
import pytest
from byte_tokenizer import byte_renderer
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.traces.levels import NEVER, min_level_at, prefix_ends
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import Component

CHARACTERS = st.characters(exclude_categories=["Cs"])
CALL = {"name": "sub", "arguments": {}}


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture(scope="module")
def straddling():
    """Has Qwen's kind of token: a full stop together with line breaks (``Ċ`` is the byte of a line break)."""
    return byte_renderer([(".", "Ċ"), (".Ċ", "Ċ")])


TEXTS = ["Zähle. 😀 ", "Dann addiere.\n\n", "Über 東京?", " Aufruf."]
CHUNKS = (*(Chunk(text) for text in TEXTS[:3]), Chunk(TEXTS[3], ChunkType.EXPLICIT_CALL_PREVIEW))


def level_texts(renderer):
    """What each level's tokens spell, as bytes."""
    turn = ExpertTurn(CHUNKS, (CALL,), ("1",))
    rendered = render_trace(renderer, ExpertTrace((turn,)))
    spelled = dict.fromkeys(range(1, NEVER + 1), b"")
    for index, component, level in zip(rendered.ids, rendered.components, rendered.min_levels, strict=True):
        if component == Component.REASONING:
            spelled[int(level)] += renderer.codec.token_bytes(int(index))
        else:
            assert level == NEVER
    return spelled


def test_levels_fall_on_the_right_characters(renderer):
    """Three safe chunks: L1 holds one, L2 and L3 two and three, the preview is in none."""
    ends = prefix_ends(CHUNKS, (CALL,))
    text = "".join(TEXTS)
    spelled = level_texts(byte_renderer([]))
    for level in range(1, 5):
        assert b"".join(spelled[k] for k in range(1, level + 1)).decode().strip() == text[: ends[level]].strip()
    assert spelled[NEVER].decode() == text[ends[4] :]
    assert ends[4] == len("".join(TEXTS[:3]))
    assert b"".join(level_texts(renderer)[level] for level in range(1, 5)).decode() == text[: ends[4]]


def test_every_byte_of_a_character_has_that_character_s_level():
    turn = byte_renderer([]).expert_turn("aé東", [CALL])
    assert turn.reasoning_end[turn.components == Component.REASONING].tolist() == [1, 2, 2, 3, 3, 3]
    assert set(turn.reasoning_end[turn.components != Component.REASONING]) == {0}


@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_reasoning_ends_rise_to_the_last_character(renderer, texts):
    reasoning = "".join(texts)
    turn = renderer.expert_turn(reasoning, [CALL])
    ends = turn.reasoning_end[turn.components == Component.REASONING]
    assert (np.diff(ends) >= 0).all()
    if len(ends):
        assert ends[0] >= 1
        assert ends[-1] <= len(reasoning)
        assert ends[-1] >= len(reasoning.rstrip())
        chunks = tuple(Chunk(text) for text in texts)
        assert min_level_at(int(ends[-1]), prefix_ends(chunks, ())) <= 4


def test_a_straddling_token_lies_inside_its_chunk_s_prefix(straddling):
    chunks = (Chunk("One.\n\n"), Chunk("Two."))
    rendered = render_trace(straddling, ExpertTrace((ExpertTurn(chunks, (CALL,), ("1",)),)))
    first = b"".join(
        straddling.codec.token_bytes(int(index))
        for index, level in zip(rendered.ids, rendered.min_levels, strict=True)
        if level == 1
    )
    assert first == b"One.\n\n"

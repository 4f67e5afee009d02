"""Whatever an annotator answers, chunks cover the reasoning and no prefix holds the literal call."""

import json

from annotations import CALL, annotator_at, answer, chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import SOON, Answer, ScriptedServer, chat

from pact_lightning.teacher.annotation import AnnotationError, annotated_chunks, read_annotation
from pact_lightning.traces.levels import UNSAFE_TYPES, literal_call_spans, prefix_ends
from pact_lightning.traces.segmentation import paragraphs
from pact_lightning.types.trace import ChunkType


def assert_safe(chunks, reasoning, calls):
    assert "".join(piece.text for piece in chunks) == reasoning
    assert all(piece.text for piece in chunks)
    ends = prefix_ends(chunks, calls)
    assert list(ends) == sorted(ends)
    for end in ends:
        assert literal_call_spans(reasoning[:end], calls) == []


_words = st.sampled_from(
    [
        "get_time",
        "get_time(",
        '{"city": "Oslo"}',
        '{"name": "get_time"',
        "<tool_call>",
        "Oslo",
        "the answer",
        "</answer>",
        *("\n\n", "\n", " ", ". ", "time ", "é\u2019", "x"),
    ]
)
_reasoning = st.lists(_words, min_size=1, max_size=14).map("".join)
_calls = st.sampled_from([(), (CALL,), (CALL, {"name": "x", "arguments": {}})])


@st.composite
def _answers(draw):
    """A reasoning, and an answer that fits it more or less: anchors mostly exact, ids mostly in order."""
    reasoning = draw(_reasoning)
    spans = paragraphs(reasoning)
    kinds = st.sampled_from([kind.value for kind in ChunkType])
    chunks, at = [], 1
    while at <= len(spans):
        last = draw(st.integers(at, len(spans)))
        chunks.append(chunk(draw(kinds), *range(at, last + 1)))
        text = reasoning[spans[last - 1].start : spans[last - 1].end]
        if draw(st.booleans()) and len(text) > 1:
            start = draw(st.integers(1, len(text) - 1))
            chunks.append(chunk(draw(kinds), last, split=last, before=text[start:]))
        at = last + 1
    number = st.integers(0, len(chunks))
    levels = sorted(draw(st.lists(number, min_size=4, max_size=4)))
    fields = {"recommended_prefix_levels": dict(zip(("L1", "L2", "L3", "L4"), levels, strict=True))}
    if draw(st.booleans()):
        where = draw(st.integers(1, len(spans)))
        quote = reasoning[spans[where - 1].start : spans[where - 1].end]
        fields["dangerous_spans"] = [
            {"paragraph_id": where, "text": quote, "kind": draw(st.sampled_from(["call", "answer"]))}
        ]
    return reasoning, answer(*chunks, **(fields if draw(st.booleans()) else {}))


@settings(max_examples=300, deadline=None)
@given(case=_answers(), calls=_calls)
def test_any_fitting_answer_is_safe(case, calls):
    reasoning, text = case
    try:
        chunks = annotated_chunks(read_annotation(text), reasoning, calls)
    except AnnotationError:
        return
    assert_safe(chunks, reasoning, calls)
    begins = [start for start, _ in literal_call_spans(reasoning, calls)]
    at = 0
    for piece in chunks:
        if piece.type not in UNSAFE_TYPES:
            assert "</answer>" not in piece.text
            assert not any(at <= start < at + len(piece.text) for start in begins)
        at += len(piece.text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["chunks", "type", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), reasoning=_reasoning, calls=_calls)
def test_any_server_whatsoever_yields_safe_chunks(data, reasoning, calls, tmp_path_factory):
    """Bodies that are no JSON, no completion, no annotation, or a fitting one, over real HTTP."""
    case, fitting = data.draw(_answers())
    body = data.draw(
        st.one_of(
            st.binary(max_size=40),
            _json.map(lambda value: json.dumps(value).encode()),
            st.one_of(st.text(), _json.map(json.dumps), st.just(fitting)).map(
                lambda text: json.dumps(chat(text).body).encode()
            ),
        )
    )
    status = data.draw(st.sampled_from([200, 200, 200, 400, 429, 500]))
    with ScriptedServer(lambda request, number: Answer(body, status, SOON)) as server:
        annotator = annotator_at(server, tmp_path_factory.mktemp("any"), attempts=2)
        for text in (reasoning, case):
            assert_safe(annotator.segment(text, calls), text, calls)
        annotator.close()

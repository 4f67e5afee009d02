"""The LLM annotator against a real server: whatever it answers, chunks are the reasoning and prefixes are safe."""

import asyncio

import pytest
from annotations import CALL, annotator_at, answer, chunk
from scripted_server import SOON, Answer, ScriptedServer, chat

from pact_lightning.teacher.annotation import AnnotationError, annotated_chunks, read_annotation
from pact_lightning.teacher.annotator import AnnotatorConfig, LLMAnnotator
from pact_lightning.traces.segmentation import paragraphs, segment_reasoning
from pact_lightning.types.trace import ChunkType

TEXT = 'They want the time in Oslo.\n\nget_time fits. So it is get_time. Then {"city": "Oslo"}.\n\nThat is all.'
FIRST, SECOND, THIRD = (TEXT[span.start : span.end] for span in paragraphs(TEXT))
PREVIEW = ChunkType.EXPLICIT_CALL_PREVIEW


GOOD = answer(
    chunk("task_restate", 1),
    chunk("tool_selection", 2),
    chunk("decision_summary", 2, 3, split=2, before="So it is"),
)


def cut(text, reasoning=TEXT, calls=(CALL,)):
    return [(piece.type.value, piece.text) for piece in annotated_chunks(read_annotation(text), reasoning, calls)]


def test_chunks_by_paragraphs_and_a_cut():
    assert cut(GOOD, calls=()) == [
        ("task_restate", FIRST),
        ("tool_selection", "get_time fits. "),
        ("decision_summary", 'So it is get_time. Then {"city": "Oslo"}.\n\n' + THIRD),
    ]


def test_the_literal_call_is_unsafe_whatever_the_answer_says():
    """The call's JSON stands in the second paragraph: from where the chunk has it on, nothing is safe."""
    assert cut(GOOD) == [
        ("task_restate", FIRST),
        ("tool_selection", "get_time fits. "),
        ("explicit_call_preview", 'So it is get_time. Then {"city": "Oslo"}.\n\n' + THIRD),
    ]
    whole = answer(chunk("task_restate", 1, 2, 3))
    assert cut(whole) == [("task_restate", FIRST), ("explicit_call_preview", SECOND + THIRD)]


def test_an_answer_tag_is_unsafe():
    reasoning = "First.\n\nIt is <answer>5</answer>."
    assert cut(answer(chunk("other", 1, 2)), reasoning) == [
        ("other", "First.\n\n"),
        ("final_answer_grounding", "It is <answer>5</answer>."),
    ]


@pytest.mark.parametrize(("kind", "label"), [("call", PREVIEW), ("answer", ChunkType.FINAL_ANSWER_GROUNDING)])
def test_a_dangerous_span_ends_what_is_safe_in_its_chunk(kind, label):
    span = {"paragraph_id": 1, "text": "time in", "kind": kind}
    got = cut(answer(chunk("task_restate", 1, 2), chunk("other", 3), dangerous_spans=[span]), calls=())
    assert got == [("task_restate", "They want the "), (label, "time in Oslo.\n\n" + SECOND), ("other", THIRD)]


def test_a_shorter_recommended_prefix_is_kept_to():
    chunks = [chunk("task_restate", 1), chunk("tool_selection", 2), chunk("other", 3)]
    levels = {"L1": 1, "L2": 1, "L3": 1, "L4": 1}
    assert [kind for kind, _ in cut(answer(*chunks, recommended_prefix_levels=levels), calls=())] == [
        "task_restate",
        "explicit_call_preview",
        "other",
    ]
    longer = levels | {"L4": 3}
    assert [kind for kind, _ in cut(answer(*chunks, recommended_prefix_levels=longer), calls=())][1] == "tool_selection"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "Invalid JSON"),
        ("[1]", "object"),
        (answer(), "at least 1 item"),
        (answer(chunk("musing", 1, 2, 3)), "chunks.0.type"),
        (answer(chunk("other", 1, 2, 3), mood="good"), "mood: Extra inputs"),
        (answer(chunk("other", "1")), "paragraph_ids.0: Input should be a valid integer"),
        (answer(chunk("other", 1), chunk("other", 3)), "chunk 2: begins with paragraph 3, but paragraph 2 comes next"),
        (answer(chunk("other", 2, 3)), "paragraph 1 comes next"),
        (answer(chunk("other", 1, 2)), "end with paragraph 2, but there are 3"),
        (answer(chunk("other", 1, 2, 3, 4)), "end with paragraph 4, but there are 3"),
        (answer(chunk("other", 1, 3, 2)), "must be consecutive"),
        (answer(chunk("other", 1, 2), chunk("other", 2, 3)), "paragraph 3 comes next"),
        (answer(chunk("other", 1, 2), chunk("other", 2, 3, split=2, before="so it is")), "does not occur"),
        (answer(chunk("other", 1, 2), chunk("other", 2, 3, split=2, before="get_time")), "more than once"),
        (answer(chunk("other", 1, 2), chunk("other", 2, 3, split=3, before="That")), "must be its first paragraph"),
        (answer(chunk("other", 1, 2), chunk("other", 2, 3, split=2, before="")), "does not occur"),
        (answer(chunk("other", 1, split=1, before="They"), chunk("other", 1, 2, 3, split=1, before="They")), "comes"),
        (answer(chunk("other", 1), {**chunk("other", 2, 3), "split_paragraph_id": 2}), "together, or neither"),
        (answer(chunk("other", 1, 2, 3), dangerous_spans=[{"paragraph_id": 9, "text": "x", "kind": "call"}]), "9"),
        (
            answer(chunk("other", 1, 2, 3), recommended_prefix_levels={"L1": 1, "L2": 0, "L3": 1, "L4": 1}),
            "must not decrease",
        ),
    ],
)
def test_an_answer_that_does_not_fit(text, says):
    with pytest.raises(AnnotationError, match=r"^(?!.*input_value)") as wrong:
        cut(text)
    assert says in str(wrong.value)


def test_fences_and_thinking_around_the_answer_are_let_be():
    assert read_annotation(f"<think>hm {{</think>\n```json\n{GOOD}\n```") == read_annotation(GOOD)


def test_a_bad_answer_is_asked_again_with_what_is_wrong(tmp_path):
    def script(request, number):
        return chat(GOOD if len(request["messages"]) > 4 else answer(chunk("other", 1)))

    with ScriptedServer(script) as server:
        annotator = annotator_at(server, tmp_path)
        chunks = annotator.segment(TEXT, [CALL], "What time is it in Oslo?")
    assert [piece.type.value for piece in chunks] == ["task_restate", "tool_selection", "explicit_call_preview"]
    asked = server.requests[-1]["messages"]
    assert "[2] get_time fits." in asked[1]["content"]
    assert "What time is it in Oslo?" in asked[1]["content"]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "end with paragraph 1, but there are 3" in asked[-1]["content"]
    assert (annotator.stats.annotated, annotator.stats.asked_again) == (1, 2)


def test_without_a_usable_answer_the_rules_cut_and_nothing_is_paid_twice(tmp_path):
    with ScriptedServer(lambda request, number: chat("no")) as server:
        annotator = annotator_at(server, tmp_path, attempts=2)
        assert annotator.annotate_text(TEXT, [CALL]) is None
        assert annotator.segment(TEXT, [CALL]) == segment_reasoning(TEXT, [CALL])
        annotator.close()
        again = annotator_at(server, tmp_path, attempts=2)
        assert again.segment(TEXT, [CALL]) == segment_reasoning(TEXT, [CALL])
        assert len(server.requests) == 2
    assert (annotator.stats.unusable, annotator.stats.asked_again, again.stats.unusable) == (2, 1, 1)


def test_the_cache_knows_model_text_and_calls(tmp_path):
    flagged = GOOD.replace('{"chunks"', '{"quality_flags": ["short"], "chunks"')
    with ScriptedServer(lambda request, number: chat(flagged)) as server:
        annotator = annotator_at(server, tmp_path)
        first = annotator.annotate_text(TEXT, [CALL])

        async def many():
            async with annotator:
                return await annotator.annotate_all([(TEXT, [CALL], "")] * 3 + [(TEXT, [], "")] * 3 + [("", [], "")])

        got = asyncio.run(many())
        annotator.close()
        assert len(server.requests) == 2  # one per text and calls, also within a batch
        resumed = annotator_at(server, tmp_path)
        assert resumed.annotate_text(TEXT, [CALL]) == first
        assert len(server.requests) == 2
        other = LLMAnnotator(AnnotatorConfig(server.config(model="other"), str(tmp_path / "cache.jsonl")))
        other.annotate_text(TEXT, [CALL])
        assert len(server.requests) == 3
    assert got[:3] == [first] * 3
    assert got[3] != first
    assert got[6] == ()
    assert (resumed.stats.from_cache, resumed.stats.quality_flags) == (1, {"short": 1})


def test_an_endpoint_that_does_not_answer_is_asked_by_the_next_run(tmp_path):
    with ScriptedServer(lambda request, number: Answer({}, 503, SOON)) as server:
        annotator = annotator_at(server, tmp_path)
        assert annotator.segment(TEXT, [CALL]) == segment_reasoning(TEXT, [CALL])
        annotator.close()
    assert annotator.stats.unanswered == 1
    with ScriptedServer(lambda request, number: chat(GOOD)) as server:
        assert annotator_at(server, tmp_path).annotate_text(TEXT, [CALL]) is not None

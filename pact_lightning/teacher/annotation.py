"""Annotation of one turn as text: the annotator's prompt, and the chunks in its answer (METHOD section 6).

The prompt's wording is ours. :func:`read_annotation` parses the JSON answer; :func:`annotated_chunks` makes chunks of
it, which are slices of the original reasoning whatever the answer says. ``annotator.py`` sends the one and caches the
other; ``traces/hard_turns.py`` decides which turns need an annotation.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pact_lightning.traces.levels import UNSAFE_TYPES, literal_call_spans
from pact_lightning.traces.segmentation import Span, paragraphs
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType

PROMPT_VERSION = 1
"""Version of the wording; part of the cache's key."""

_MEANINGS: Mapping[ChunkType, str] = {
    ChunkType.TASK_RESTATE: "says what is asked, or what is left to do",
    ChunkType.TOOL_SCAN: "looks over the tools",
    ChunkType.TOOL_SELECTION: "decides for a tool",
    ChunkType.REQUIRED_ARG_GROUNDING: "finds the values of required arguments",
    ChunkType.OPTIONAL_ARG_ANALYSIS: "weighs optional arguments",
    ChunkType.IRRELEVANT_TOOL_REJECTION: "rules out tools that do not help",
    ChunkType.FAILURE_REFLECTION: "thinks about a call that failed",
    ChunkType.FALLBACK_PLAN: "plans what to try instead",
    ChunkType.DECISION_SUMMARY: "sums up what was decided or found",
    ChunkType.EXPLICIT_CALL_PREVIEW: "shows or announces the call: its JSON, its name with all arguments, or a phrase "
    "such as 'so I will call'",
    ChunkType.FINAL_ANSWER_GROUNDING: "states or prepares the final answer",
    ChunkType.OTHER: "anything else",
}

_SYSTEM = (
    "You label the reasoning that an assistant wrote before a tool call. Its paragraphs are numbered. Group them into "
    "consecutive chunks, so that every chunk does one thing, and answer with one JSON object and nothing else:\n"
    '{"chunks": [{"type": "...", "paragraph_ids": [1, 2]}, '
    '{"type": "...", "paragraph_ids": [2, 3], "split_paragraph_id": 2, "cut_before_text": "..."}], '
    '"dangerous_spans": [{"paragraph_id": 3, "text": "...", "kind": "call"}], '
    '"recommended_prefix_levels": {"L1": 1, "L2": 1, "L3": 2, "L4": 2}, "quality_flags": ["..."]}\n'
    "Rules. Chunks come in order and together hold every paragraph. Where one thing ends in the middle of a paragraph, "
    "the next chunk begins there: it lists that paragraph first, names it in split_paragraph_id, and gives in "
    "cut_before_text the first words of its part, copied exactly and occurring only once in the paragraph. "
    "dangerous_spans are exact quotes that give away the coming call (kind call) or the final answer (kind answer); an "
    "empty list if there are none. recommended_prefix_levels says how many chunks, counted from the first, can be "
    "shown to a learner at each level without giving away the call: L1 the first step, L4 everything that is safe; the "
    "numbers never decrease. quality_flags are short remarks on reasoning that is wrong, repetitive or off the point; "
    "usually an empty list. Never rewrite the text.\nTypes:\n"
)
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)

_Words = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=0)]


def annotation_messages(reasoning: str, calls: Sequence[ToolCall], context: str) -> list[dict[str, Any]]:
    """Return the dialogue up to the annotator's answer.

    Args:
        reasoning: The reasoning; its paragraphs are numbered from 1.
        calls: The calls that follow the reasoning.
        context: The question, say; may be empty.
    """
    parts = [reasoning[span.start : span.end].strip() for span in paragraphs(reasoning)]
    types = "\n".join(f"- {kind.value}: {meaning}" for kind, meaning in _MEANINGS.items())
    about = f"The question:\n{context}\n\n" if context else ""
    shown = "\n".join(json.dumps(dict(call), ensure_ascii=False) for call in calls) or "none; it answers the user"
    numbered = "\n".join(f"[{number}] {text}" for number, text in enumerate(parts, start=1))
    user = f"{about}The call that follows:\n{shown}\n\nThe reasoning:\n{numbered}"
    return [{"role": "system", "content": _SYSTEM + types}, {"role": "user", "content": user}]


def correction_messages(answer: str, problem: str) -> list[dict[str, Any]]:
    """Return the dialogue's continuation after an unusable answer."""
    content = f"That is not usable: {problem}. Answer again with the whole JSON object, corrected."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": content}]


class AnnotationError(ValueError):
    """Unusable answer; the message goes back to the annotator."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ChunkAnswer(_Strict):
    """One chunk of whole paragraphs; the first may be cut, and its head then ends the chunk before."""

    type: ChunkType
    paragraph_ids: Annotated[list[int], Field(min_length=1)]
    split_paragraph_id: int | None = None
    cut_before_text: str | None = None


class DangerousSpan(_Strict):
    """Text that gives away the call or the answer."""

    paragraph_id: int
    text: _Words
    kind: Literal["call", "answer"]


class PrefixLevels(_Strict):
    """Number of chunks, from the first, that belong to each level."""

    L1: _Count
    L2: _Count
    L3: _Count
    L4: _Count


class AnnotationAnswer(_Strict):
    """Whole answer of an annotator."""

    chunks: Annotated[list[ChunkAnswer], Field(min_length=1)]
    dangerous_spans: list[DangerousSpan] = []
    recommended_prefix_levels: PrefixLevels | None = None
    quality_flags: list[str] = []


class _Danger(NamedTuple):
    """Unsafe text that begins at a character; its chunk is unsafe from there, or from an earlier character."""

    begins: int
    unsafe_from: int
    kind: ChunkType


def read_annotation(text: str) -> AnnotationAnswer:
    """Parse an answer: JSON, alone, in a code block, or behind thinking.

    Raises:
        AnnotationError: It is no such JSON, or has other fields or types than were asked for.
    """
    body = text.rpartition("</think>")[2].strip()
    fenced = _FENCE.fullmatch(body)
    try:
        return AnnotationAnswer.model_validate_json(fenced.group(1) if fenced else body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise AnnotationError(f"{where}: {first['msg']}") from error


def annotated_chunks(answer: AnnotationAnswer, reasoning: str, calls: Sequence[ToolCall]) -> tuple[Chunk, ...]:
    """Cut the reasoning into the chunks that an answer describes.

    Whatever the answer says, the chunks cover the reasoning once and in order, and no safe one holds a literal call or
    an answer tag. From the paragraph in which one begins, the rest of its chunk becomes unsafe [D]. Two more things
    become unsafe [D]: the rest of a chunk from a dangerous span on, and the first chunk behind the recommended L4.
    :mod:`pact_lightning.traces.levels` places L1 to L3 below L4.

    Args:
        answer: The answer.
        reasoning: The annotated reasoning; not empty.
        calls: The turn's calls.

    Raises:
        AnnotationError: Chunks or spans do not fit the paragraphs, or a quote does not occur exactly once in its own.
    """
    parts = paragraphs(reasoning)
    starts = _chunk_starts(answer.chunks, parts, reasoning)
    kinds = _kinds(answer)
    dangers = [_named_danger(span, parts, reasoning) for span in answer.dangerous_spans]
    dangers += _certain_dangers(parts, reasoning, calls)
    chunks: list[Chunk] = []
    for start, end, kind in zip(starts, [*starts[1:], len(reasoning)], kinds, strict=True):
        cut, unsafe = end, kind
        if kind not in UNSAFE_TYPES:
            inside = [(max(d.unsafe_from, start), d.kind) for d in dangers if start <= d.begins < end]
            cut, unsafe = min(inside, default=(end, kind), key=lambda entry: entry[0])
        if cut > start:
            chunks.append(Chunk(reasoning[start:cut], kind))
        if cut < end:
            chunks.append(Chunk(reasoning[cut:end], unsafe))
    return tuple(chunks)


def _chunk_starts(chunks: Sequence[ChunkAnswer], parts: Sequence[Span], reasoning: str) -> list[int]:
    starts: list[int] = []
    last = 0
    for number, chunk in enumerate(chunks, start=1):
        first, where = chunk.paragraph_ids[0], f"chunk {number}"
        if chunk.paragraph_ids != list(range(first, first + len(chunk.paragraph_ids))):
            raise AnnotationError(f"{where}: paragraph_ids must be consecutive, got {chunk.paragraph_ids}")
        if (chunk.split_paragraph_id is None) != (chunk.cut_before_text is None):
            raise AnnotationError(f"{where}: give split_paragraph_id and cut_before_text together, or neither")
        if chunk.cut_before_text is None:
            expected, start = last + 1, parts[first - 1].start if 1 <= first <= len(parts) else 0
        else:
            if chunk.split_paragraph_id != first:
                raise AnnotationError(f"{where}: split_paragraph_id must be its first paragraph, {first}")
            expected, start = last, _anchor(chunk.cut_before_text, first, parts, reasoning, where)
        if first != expected or not 1 <= first <= len(parts):
            raise AnnotationError(f"{where}: begins with paragraph {first}, but paragraph {expected} comes next")
        if starts and start <= starts[-1]:
            raise AnnotationError(f"{where}: the cut leaves nothing for the chunk before")
        starts.append(start)
        last = chunk.paragraph_ids[-1]
    if last != len(parts):
        raise AnnotationError(f"the chunks end with paragraph {last}, but there are {len(parts)}")
    return starts


def _anchor(text: str, paragraph: int, parts: Sequence[Span], reasoning: str, where: str) -> int:
    """Find a quote, which must occur exactly once in its paragraph, overlaps counted."""
    if not 1 <= paragraph <= len(parts):
        raise AnnotationError(f"{where}: there is no paragraph {paragraph}; they are 1 to {len(parts)}")
    span = parts[paragraph - 1]
    at = reasoning.find(text, span.start, span.end) if text else -1
    if at < 0:
        raise AnnotationError(f"{where}: {text[:80]!r} does not occur in paragraph {paragraph}; quote it exactly")
    if reasoning.find(text, at + 1, span.end) >= 0:
        raise AnnotationError(
            f"{where}: {text[:80]!r} occurs more than once in paragraph {paragraph}; quote more of it"
        )
    return at


def _kinds(answer: AnnotationAnswer) -> list[ChunkType]:
    kinds = [chunk.type for chunk in answer.chunks]
    levels = answer.recommended_prefix_levels
    if levels is None:
        return kinds
    counts = [levels.L1, levels.L2, levels.L3, levels.L4]
    if counts != sorted(counts) or counts[-1] > len(kinds):
        raise AnnotationError(f"recommended_prefix_levels must not decrease, nor exceed {len(kinds)} chunks: {counts}")
    shown = counts[-1]
    if kinds[shown:] and not UNSAFE_TYPES & set(kinds[: shown + 1]):
        kinds[shown] = ChunkType.EXPLICIT_CALL_PREVIEW
    return kinds


def _named_danger(span: DangerousSpan, parts: Sequence[Span], reasoning: str) -> _Danger:
    at = _anchor(span.text, span.paragraph_id, parts, reasoning, "dangerous_spans")
    is_call = span.kind == "call"
    return _Danger(at, at, ChunkType.EXPLICIT_CALL_PREVIEW if is_call else ChunkType.FINAL_ANSWER_GROUNDING)


def _certain_dangers(parts: Sequence[Span], reasoning: str, calls: Sequence[ToolCall]) -> list[_Danger]:
    """Find what gives away the call or the answer by its form; it is unsafe from the start of its paragraph."""
    found = [(start, ChunkType.EXPLICIT_CALL_PREVIEW) for start, _ in literal_call_spans(reasoning, calls)]
    found += [(match.start(), ChunkType.FINAL_ANSWER_GROUNDING) for match in _ANSWER_TAG.finditer(reasoning)]
    return [_Danger(at, max(part.start for part in parts if part.start <= at), kind) for at, kind in found]

"""Segmentation of a turn's reasoning into typed chunks by deterministic rules (METHOD section 6).

All rules are [D], except for the chunk types and the definition of a preview [P]:

1. Units are paragraphs (blank lines between them); without blank lines, lines; without any line break, the sentences
   of a paragraph longer than ``LONG_PARAGRAPH`` characters. White space goes with what stands before it.
2. Each unit gets the type whose keyword pattern matches most often in it; a tie goes to the type that stands first in
   ``KEYWORDS``; without a match it is ``other``.
3. A unit with a sentence that previews the call or states the answer is cut before that sentence; from there to its
   end it is ``explicit_call_preview`` or ``final_answer_grounding``; :func:`segment_reasoning` defines previews.
4. Lines and sentences are small, so neighbours of one type become one chunk, and ``other`` joins the chunk beside it.
5. Fallback: where no keyword matches anywhere in several units, the rules do not understand the text (another language,
   say). Its units stay as they are, of type ``other``, and a sentence need only name a called tool to be a preview.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pact_lightning.traces.levels import UNSAFE_TYPES, literal_call_spans
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, TurnPattern

LONG_PARAGRAPH = 240
"""A single paragraph longer than this many characters is cut by sentences [D]."""

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_LINE_BREAK = re.compile(r"\n\s*")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*`]*\s+(?![\sa-z])|[。！？]+\s*|\n\s*")


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(patterns) + r")\b", re.IGNORECASE)


KEYWORDS: tuple[tuple[ChunkType, re.Pattern[str]], ...] = (
    (
        ChunkType.FAILURE_REFLECTION,
        _words(
            r"errors?(?!-prone)",
            r"(?:call|attempt|request|it|this|that|tool|function) failed",
            r"failure",
            r"(?:didn't|did not|doesn't|does not) work",
            r"(?:previous|last|earlier|first) (?:call|attempt)",
            r"my mistake",
            r"exception",
        ),
    ),
    (
        ChunkType.FALLBACK_PLAN,
        _words(
            r"if (?:that|this|it|the (?:call|tool)) (?:fails|doesn't work|does not work|returns nothing)",
            r"alternatively",
            r"fall ?back",
            r"as a (?:backup|last resort)",
            r"(?:another|a different) (?:approach|way|option)",
            r"try (?:again|another|a different|once more)",
            r"retry(?:ing)?",
        ),
    ),
    (
        ChunkType.IRRELEVANT_TOOL_REJECTION,
        _words(
            r"(?:other|remaining) (?:tools?|functions?|options)",
            r"(?:none of|neither of) (?:these|the|them|those)",
            r"(?:not|isn't|aren't|don't seem) (?:\w+ )?(?:relevant|related|applicable|suitable)",
            r"irrelevant",
            r"unrelated",
        ),
    ),
    (
        ChunkType.OPTIONAL_ARG_ANALYSIS,
        _words(
            r"optional(?:ly)?",
            r"defaults?",
            r"(?:not|isn't|aren't|wasn't) (?:specified|provided|mentioned|given)",
            r"(?:didn't|did not|doesn't|does not) (?:specify|mention|provide|give)",
            r"leave (?:it|them|that|this|those) (?:out|empty|blank|as)",
            r"omit(?:s|ted)?",
        ),
    ),
    (
        ChunkType.REQUIRED_ARG_GROUNDING,
        _words(
            r"requires?",
            r"required",
            r"(?:parameters?|arguments?)",
            r"(?:user|question|they) (?:has |have )?(?:provided|gave|specified)",
            r"set to",
            r"(?:pass|fill in|input) (?:it|this|that|the)",
        ),
    ),
    (
        ChunkType.TOOL_SELECTION,
        _words(
            r"(?:tool|function|api) (?:called|named)",
            r"(?:use|using|choose|select|pick) (?:\S+ ){0,5}?(?:tool|function|api)",
            r"(?:right|best|perfect|appropriate|suitable|correct|good) (?:tool|function|choice|fit|one)",
            r"(?:tool|function|api) (?:\S+ )?(?:is|seems|looks|fits|would be|that comes)",
            r"(?:designed|meant|intended) (?:for|to)",
        ),
    ),
    (
        ChunkType.TOOL_SCAN,
        _words(
            r"available (?:tools?|functions?|apis?)",
            r"(?:tools|functions|apis) (?:available|provided|listed|at hand|i have|are|include)",
            r"(?:what|which) (?:tools?|functions?|apis?)",
            r"(?:check|look at|looking at|go through|review) the (?:\w+ )?(?:tools|functions|list)",
        ),
    ),
    (
        ChunkType.DECISION_SUMMARY,
        _words(
            r"therefore",
            r"thus",
            r"in (?:summary|conclusion|short)",
            r"to (?:summari[sz]e|conclude|sum up)",
            r"overall",
            r"(?:the|my) plan is",
            r"putting (?:it|this|everything) (?:all )?together",
            r"(?:i've|i have) decided",
            r"(?:best|correct|right|next) (?:action|approach|step|move)",
        ),
    ),
    (
        ChunkType.TASK_RESTATE,
        _words(
            r"(?:user|question|task|request|query) (?:wants?|needs?|asks?|asked|is asking|is about|is looking)",
            r"(?:user|question|task) (?:just )?(?:would like|wanted|is requesting|requested|mentioned|is to)",
            r"(?:user's|their) (?:request|question|query|message|main)",
            r"(?:we|i) (?:are|am|have been) asked to",
            r"they (?:want|need|are asking|asked)",
        ),
    ),
)
"""The keyword pattern of each type; the order decides ties."""

_ADVERBS = r"(?:(?:now|then|next|just|simply|first|directly|also|go ahead and) )*"
_CALL_NOUN = r"(?:(?:final|actual|correct|complete|resulting|tool|function|api) )*calls?"
_INTRODUCES_CALL = re.compile(
    # Announced: "I will call", "let me now invoke".
    rf"\b(?:(?:i|we)(?:'ll| will| shall|'m going to| am going to| are going to)|let me|let's) "
    rf"{_ADVERBS}(?:call|invoke|(?:make|issue|write|emit|output) (?:the |a |this |that )?{_CALL_NOUN})\b"
    # With its arguments: "call it with", "calling the tool without any parameters".
    r"|\b(?:call|calling|invoke|invoking)\b[^.!?\n]{0,120}?\bwith(?:out)?\b"
    # Shown: "the call is:", "here is the tool call".
    rf"|\b{_CALL_NOUN} (?:is|are|will be|would be|should be|looks like|becomes)(?: as follows| this| like this)? ?:"
    rf"|\b(?:here is|here's|here are) (?:the|my) {_CALL_NOUN}\b"
    rf"|\b(?:the|tool|function) calls? ?:",
    re.IGNORECASE,
)
_STATES_ANSWER = re.compile(
    r"</?answer>|\bfinal answer\b"
    r"|\bthe answer (?:to [^.!?\n]{1,80} )?(?:is|must be|should be|would be|will be)\b"
    r"|\bi (?:can|will) now (?:answer|give|state|provide)\b",
    re.IGNORECASE,
)


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a reasoning, with their type."""

    start: int
    end: int
    type: ChunkType = ChunkType.OTHER


def segment_reasoning(reasoning: str, calls: Sequence[ToolCall]) -> tuple[Chunk, ...]:
    """Cut the reasoning of one turn into contiguous, ordered, typed chunks.

    A sentence previews a call, and so starts an ``explicit_call_preview`` [P], in three cases: the call begins in it
    literally (:func:`~pact_lightning.traces.levels.literal_call_spans`), it names the function together with all
    argument values, or a phrase introduces the call ("I will call", "call it with", "the call is:"). A sentence that
    states the final answer starts a ``final_answer_grounding``. The rest of the paragraph belongs to the same chunk.

    Args:
        reasoning: The text between the thinking marks, any language; may be empty.
        calls: The calls that the turn makes.

    Returns:
        Chunks whose texts, joined, are ``reasoning``; empty for an empty text.

    >>> call = {"name": "get_time", "arguments": {"city": "Oslo"}}
    >>> text = "The user asks for the time in Oslo. I will call get_time."
    >>> [(chunk.type.value, chunk.text) for chunk in segment_reasoning(text, [call])]
    [('task_restate', 'The user asks for the time in Oslo. '), ('explicit_call_preview', 'I will call get_time.')]
    """
    if not reasoning:
        return ()
    plain = reasoning.replace("’", "'")  # as long as the original, so positions agree
    units = paragraphs(plain)
    fine = len(_split(plain, _BLANK_LINES)) == 1
    if len(units) == 1 and len(plain) > LONG_PARAGRAPH:
        units = _split(plain, _SENTENCE_END)
    unsure = len(units) > 1 and not any(pattern.search(plain) for _, pattern in KEYWORDS)
    sentences = _sentences(plain, calls)
    unsafe = list(_unsafe_spans(plain, calls, sentences, name_alone=unsure))
    starts = [sentence.start for sentence in sentences]
    pieces = [piece for unit in units for piece in _cut_unit(plain, unit, unsafe, starts)]
    if fine and not unsure:
        pieces = _merge(pieces)
    return tuple(Chunk(reasoning[piece.start : piece.end], piece.type) for piece in pieces)


def turn_pattern(index: int, previous_failed: bool, chunks: Sequence[Chunk], is_final: bool) -> TurnPattern:
    """Derive a turn's pattern from its position and its chunks [D].

    Args:
        index: The turn's index in the trace, from 0.
        previous_failed: True if a call of the turn before failed.
        chunks: The turn's chunks.
        is_final: True for the turn that gives the final answer.

    Returns:
        The pattern; ``compare_then_call`` is a first turn that rejects tools, or scans them and then selects.

    Raises:
        ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"turn index is {index}; count turns from 0")
    if is_final:
        return TurnPattern.FINAL_ANSWER_TURN
    if index > 0:
        return TurnPattern.RETRY_AFTER_FAILED_CALL if previous_failed else TurnPattern.POST_OBSERVATION_FOLLOWUP
    types = {chunk.type for chunk in chunks}
    compares = ChunkType.IRRELEVANT_TOOL_REJECTION in types or {ChunkType.TOOL_SCAN, ChunkType.TOOL_SELECTION} <= types
    return TurnPattern.COMPARE_THEN_CALL if compares else TurnPattern.INITIAL_ATTEMPT


def paragraphs(text: str) -> list[Span]:
    """Split a text into its paragraphs, or into its lines if it has no blank line; they cover it once and in order."""
    found = _split(text, _BLANK_LINES)
    return found if len(found) > 1 else _split(text, _LINE_BREAK)


def _split(text: str, separator: re.Pattern[str]) -> list[Span]:
    """Cut after every separator; white space at the start of the text stays with the first piece."""
    first = len(text) - len(text.lstrip())
    cuts = [match.end() for match in separator.finditer(text) if first < match.end() < len(text)]
    return [Span(start, end) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _sentences(text: str, calls: Sequence[ToolCall]) -> list[Span]:
    """Split a text into sentences; none ends inside an argument value, so every value is within one sentence."""
    sentences = _split(text, _SENTENCE_END)
    leaves = {leaf for call in calls for leaf in _leaves(call["arguments"]) if _SENTENCE_END.search(leaf)}
    inside = [match.span() for leaf in leaves for match in _whole(leaf).finditer(text)]
    starts = [s.start for s in sentences if not any(start < s.start < end for start, end in inside)]
    return [Span(start, end) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _unsafe_spans(
    text: str, calls: Sequence[ToolCall], sentences: Sequence[Span], *, name_alone: bool
) -> Iterator[Span]:
    preview = ChunkType.EXPLICIT_CALL_PREVIEW
    for start, end in literal_call_spans(text, calls):
        yield Span(start, end, preview)
    for match in _INTRODUCES_CALL.finditer(text):
        yield Span(*match.span(), preview)
    for match in _STATES_ANSWER.finditer(text):
        yield Span(*match.span(), ChunkType.FINAL_ANSWER_GROUNDING)
    for call in calls:
        if not call["name"].strip():
            continue
        name, values = _whole(call["name"]), [_whole(leaf) for leaf in _leaves(call["arguments"])]
        for sentence in sentences:
            words = text[sentence.start : sentence.end]
            if name.search(words) and (name_alone or (values and all(value.search(words) for value in values))):
                yield Span(sentence.start, sentence.end, preview)


def _whole(text: str) -> re.Pattern[str]:
    """Match a text as whole words, case and white space aside; a whole number as ``2`` and as ``2.0``."""
    number = re.fullmatch(r"(-?\d+)(?:\.0+)?", text)
    body = rf"{number.group(1)}(?:\.0+)?" if number else r"\s+".join(map(re.escape, text.split()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def _leaves(value: Any) -> list[str]:
    """Return the scalar values inside an argument value, as text, without blank ones."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    value = str(value).replace("’", "'")
    return [value] if value.strip() else []


def _cut_unit(text: str, unit: Span, unsafe: Sequence[Span], sentence_starts: Sequence[int]) -> Iterator[Span]:
    """Yield the safe head of a unit and its unsafe tail, if there are any."""
    cut, kind = unit.end, ChunkType.OTHER
    for span in unsafe:
        if span.start < unit.end and unit.start < span.end:
            start = max(unit.start, sentence_starts[bisect_right(sentence_starts, span.start) - 1])
            if start < cut:
                cut, kind = start, span.type
    if cut > unit.start:
        yield Span(unit.start, cut, _keyword_type(text[unit.start : cut]))
    if cut < unit.end:
        yield Span(cut, unit.end, kind)


def _keyword_type(text: str) -> ChunkType:
    best, most = ChunkType.OTHER, 0
    for kind, pattern in KEYWORDS:
        count = sum(1 for _ in pattern.finditer(text))
        if count > most:
            best, most = kind, count
    return best


def _merge(pieces: Sequence[Span]) -> list[Span]:
    """Join neighbours of one type, and ``other`` with the chunk before it or, at the start, the one after it.

    Unsafe chunks join only with their own type: safe text stays safe, unsafe text unsafe.
    """
    merged: list[Span] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is None or (last.type != piece.type and not _joins(last.type, piece.type)):
            merged.append(piece)
        else:
            kind = piece.type if last.type is ChunkType.OTHER else last.type
            merged[-1] = Span(last.start, piece.end, kind)
    return merged


def _joins(before: ChunkType, after: ChunkType) -> bool:
    return ChunkType.OTHER in {before, after} and not UNSAFE_TYPES & {before, after}

"""Hard turns: reasoning that the rules segment badly, the annotator's turn at it, and quality flags (METHOD section 6).

:func:`hard_reasons` says what makes a turn hard. :func:`segment_trace` hands hard turns to an :class:`Annotator`, such
as the language model of ``teacher/annotator.py``. :func:`quality_flags` reports what to know of a trace before training
on it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from pact_lightning.traces.leak import leak_reasons
from pact_lightning.traces.levels import UNSAFE_TYPES, literal_call_spans, prefix_ends
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn

COARSE_CHARACTERS = 600
"""A shorter reasoning may be one chunk without being called coarse [D]."""
HALF = 0.5
"""Share of the reasoning above which a single chunk, or all untyped chunks together, make a turn hard [D]."""


@dataclass(frozen=True, slots=True)
class TurnContext:
    """Surroundings of a turn.

    Attributes:
        prompt: The task's prompt.
        turn: The turn's index in the trace, from 0; the final turn comes last.
        earlier: The turns before it.
    """

    prompt: PromptView
    turn: int
    earlier: tuple[ExpertTurn, ...] = ()


class Annotator(Protocol):
    """Segmenter of hard turns, such as a language model."""

    def annotate(self, turn: ExpertTurn, context: TurnContext) -> Sequence[Chunk] | None:
        """Segment the turn's reasoning.

        Args:
            turn: The turn, with the rules' chunks.
            context: Its surroundings.

        Returns:
            Chunks whose texts, joined, are the turn's reasoning; ``None`` to keep the rules' chunks.
        """
        ...


def hard_reasons(chunks: Sequence[Chunk], reasoning: str, calls: Sequence[ToolCall]) -> list[str]:
    """List the reasons why a turn is hard for the rules [D].

    - ``unsure``: there are several chunks and no keyword in any of them.
    - ``untyped``: more than half of the reasoning is of type ``other``.
    - ``preview_first``: the call or the answer stands in the first chunk, which leaves no safe prefix.
    - ``coarse``: one safe chunk is more than half of a reasoning of over 600 characters, so levels hardly differ.

    Args:
        chunks: The rules' chunks.
        reasoning: The turn's reasoning.
        calls: The turn's calls.

    Returns:
        The reasons' names; empty for an easy turn, and for one without reasoning.
    """
    if not reasoning.strip():
        return []
    reasons = []
    kinds = {chunk.type for chunk in chunks}
    untyped = sum(len(chunk.text) for chunk in chunks if chunk.type is ChunkType.OTHER)
    if len(chunks) > 1 and ChunkType.OTHER in kinds and not kinds - UNSAFE_TYPES - {ChunkType.OTHER}:
        reasons.append("unsure")
    elif untyped > HALF * len(reasoning):
        reasons.append("untyped")
    if prefix_ends(chunks, calls)[-1] == 0:
        reasons.append("preview_first")
    longest = max((len(chunk.text) for chunk in chunks if chunk.type not in UNSAFE_TYPES), default=0)
    if len(reasoning) > COARSE_CHARACTERS and longest > HALF * len(reasoning):
        reasons.append("coarse")
    return reasons


def is_hard(chunks: Sequence[Chunk], reasoning: str, calls: Sequence[ToolCall]) -> bool:
    """Tell whether a turn is for an annotator; see :func:`hard_reasons`."""
    return bool(hard_reasons(chunks, reasoning, calls))


def annotation_problem(chunks: Sequence[Chunk], turn: ExpertTurn) -> str:
    """Check an annotator's chunks of a turn.

    Returns:
        The reason why they cannot be used; empty for usable ones.
    """
    if "".join(chunk.text for chunk in chunks) != turn.reasoning:
        return "the chunks' texts, joined, are not the reasoning"
    if any(not chunk.text for chunk in chunks):
        return "a chunk is empty"
    safe = next((i for i, chunk in enumerate(chunks) if chunk.type in UNSAFE_TYPES), len(chunks))
    if literal_call_spans("".join(chunk.text for chunk in chunks[:safe]), turn.calls):
        return "chunks that count as safe hold the call literally"
    return ""


def segment_trace(
    prompt: PromptView,
    trace: ExpertTrace,
    *,
    failed: Sequence[bool] | None = None,
    annotator: Annotator | None = None,
) -> tuple[ExpertTrace, Counter[str]]:
    """Segment a trace anew: easy turns by the rules, hard turns by the annotator.

    Args:
        prompt: The task's prompt.
        trace: The trace; its present chunks are joined first.
        failed: Per turn, true if one of its calls failed; distinguishes retries from follow-ups. With ``None`` the
            turns keep their patterns.
        annotator: The segmenter of hard turns; without one they keep the rules' chunks.

    Returns:
        The trace, and the number of turns by what segmented them: ``rules``, ``annotator``, ``rules, uncertain``
        (no annotator, or no chunks from it), and ``annotation refused: ...``.
    """
    shown = trace.turns if trace.final is None else (*trace.turns, trace.final)
    turns, counts = segment_turns(prompt, shown, failed=failed, annotator=annotator)
    count = len(trace.turns)
    return ExpertTrace(turns[:count], turns[count] if trace.final is not None else None, trace.source), counts


def segment_turns(
    prompt: PromptView,
    turns: Sequence[ExpertTurn],
    *,
    failed: Sequence[bool] | None = None,
    annotator: Annotator | None = None,
) -> tuple[tuple[ExpertTurn, ...], Counter[str]]:
    """Segment turns in order, as :func:`segment_trace` does; a last turn's responses may be unknown."""
    counts: Counter[str] = Counter()
    segmented: list[ExpertTurn] = []
    for index, turn in enumerate(turns):
        chunks = _chunks(turn, TurnContext(prompt, index, tuple(segmented)), annotator, counts)
        pattern = turn.pattern
        if failed is not None and turn.calls:
            pattern = turn_pattern(index, index > 0 and failed[index - 1], chunks, is_final=False)
        segmented.append(replace(turn, chunks=chunks, pattern=pattern))
    return tuple(segmented), counts


def _chunks(
    turn: ExpertTurn, context: TurnContext, annotator: Annotator | None, counts: Counter[str]
) -> tuple[Chunk, ...]:
    by_rule = segment_reasoning(turn.reasoning, turn.calls)
    if not is_hard(by_rule, turn.reasoning, turn.calls):
        if by_rule:
            counts["rules"] += 1
        return by_rule
    given = None if annotator is None else annotator.annotate(replace(turn, chunks=by_rule), context)
    if given is None:
        counts["rules, uncertain"] += 1
        return by_rule
    problem = annotation_problem(given, turn)
    counts[f"annotation refused: {problem}" if problem else "annotator"] += 1
    return by_rule if problem else tuple(given)


class QualityFlag(StrEnum):
    """Quality flags of a trace. The paper's annotator gives ``quality_flags`` [P]; this list is ours [D]."""

    LEAK = "leak"
    """A prefix gives away the call or the answer; see :func:`~pact_lightning.traces.leak.leak_reasons`."""
    NO_REASONING = "no_reasoning"
    """A turn that calls tools has no reasoning, so only its call is ever supervised."""
    PREVIEW_FIRST = "preview_in_first_chunk"
    """The call or the answer stands in the first chunk, so no level shows any of the reasoning."""
    UNSURE = "unsure_segmentation"
    """No keyword matches anywhere, or none in more than half of the reasoning; the chunks have no type."""
    COARSE = "coarse_segmentation"
    """One chunk is most of a long reasoning, so levels hardly differ."""


_OF_HARD = {
    "unsure": QualityFlag.UNSURE,
    "untyped": QualityFlag.UNSURE,
    "preview_first": QualityFlag.PREVIEW_FIRST,
    "coarse": QualityFlag.COARSE,
}


@dataclass(frozen=True, slots=True)
class Flagged:
    """One flag of one turn.

    Attributes:
        flag: The flag.
        turn: The turn's index; ``None`` where the text names it.
        text: Details, in one sentence; may be empty.
    """

    flag: QualityFlag
    turn: int | None = None
    text: str = ""


def quality_flags(trace: ExpertTrace, answer: str | None = None) -> list[Flagged]:
    """Flag a trace: leaks first, then turn by turn; not the final turn, which no privileged context holds.

    Args:
        trace: The trace.
        answer: The reference's answer, if known.
    """
    flags = [Flagged(QualityFlag.LEAK, None, reason) for reason in leak_reasons(trace, answer)]
    for index, turn in enumerate(trace.turns):
        if turn.calls and not turn.reasoning.strip():
            flags.append(Flagged(QualityFlag.NO_REASONING, index))
        flags += [Flagged(_OF_HARD[why], index) for why in hard_reasons(turn.chunks, turn.reasoning, turn.calls)]
    return flags


def flag_names(trace: ExpertTrace, answer: str | None = None) -> list[str]:
    """Return the names of a trace's flags, each once, in alphabetical order."""
    return sorted({str(flagged.flag) for flagged in quality_flags(trace, answer)})

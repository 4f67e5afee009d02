"""Which turns the deterministic rules segment badly, and how an annotator's chunks take the place of theirs.

What to know of a trace before one trains on it: quality flags (METHOD section 6).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
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
    """What stands around a turn.

    Attributes:
        prompt: The task's prompt.
        turn: The turn's index in the trace, from 0; the final turn's is the number of the others.
        earlier: The turns before it.
    """

    prompt: PromptView
    turn: int
    earlier: tuple[ExpertTurn, ...] = ()


class Annotator(Protocol):
    """Segments a turn that the rules find hard, by a language model for example."""

    def annotate(self, turn: ExpertTurn, context: TurnContext) -> Sequence[Chunk] | None:
        """Cuts the turn's reasoning.

        Args:
            turn: The turn, with the chunks that the rules gave it.
            context: What stands around it.

        Returns:
            Chunks whose texts, joined, are the turn's reasoning; ``None`` to leave the rules' chunks.
        """
        ...


def hard_reasons(chunks: Sequence[Chunk], reasoning: str, calls: Sequence[ToolCall]) -> list[str]:
    """Why a turn is hard for the deterministic rules [D].

    Args:
        chunks: The rules' chunks.
        reasoning: The turn's reasoning.
        calls: The turn's calls.

    Returns:
        Any of ``unsure`` (several chunks and no keyword in any of them: the rules do not understand the text),
        ``untyped`` (more than half of the reasoning is in chunks of type ``other``), ``preview_first`` (a preview or an
        answer in the first chunk leaves no safe prefix), ``coarse`` (one safe chunk is more than half of a reasoning of
        more than 600 characters, so that levels hardly differ). Empty for a turn without reasoning: there is nothing to
        cut.
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
    """Whether an annotator should look at a turn; see :func:`hard_reasons`."""
    return bool(hard_reasons(chunks, reasoning, calls))


def annotation_problem(chunks: Sequence[Chunk], turn: ExpertTurn) -> str:
    """Why an annotator's chunks cannot be used; empty where they can.

    Args:
        chunks: The annotator's chunks.
        turn: The turn.
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
    """Segments a trace anew: every turn by the rules, hard turns by the annotator.

    Args:
        prompt: The task's prompt.
        trace: The trace; its chunks are joined and cut again.
        failed: For each of the trace's turns whether a call of it failed; tells retries from follow-ups. Where it is
            not known, the turns keep the patterns they have.
        annotator: Looks at hard turns; without one they keep the rules' chunks.

    Returns:
        The trace, and how many turns were segmented in which way: ``rules``, ``annotator``, ``hard turn, rules kept``
        (no annotator, or it gave none), and ``annotation refused: ...``.
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
    """Segments turns one after the other, complete or not (a last turn's responses may be unknown).

    Args:
        prompt: The task's prompt.
        turns: The turns, a final one last.
        failed: See :func:`segment_trace`.
        annotator: See :func:`segment_trace`.

    Returns:
        The turns, and the counts of :func:`segment_trace`.
    """
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
        counts["hard turn, rules kept"] += 1
        return by_rule
    problem = annotation_problem(given, turn)
    counts[f"annotation refused: {problem}" if problem else "annotator"] += 1
    return by_rule if problem else tuple(given)


class QualityFlag(StrEnum):
    """Names of flags. The paper has an annotator give ``quality_flags`` [P]; which ones there are is ours [D]."""

    LEAK = "leak"
    """A prefix gives away the call or the answer; see :func:`~pact_lightning.traces.leak.leak_reasons`."""
    NO_REASONING = "no_reasoning"
    """A turn that calls tools has no reasoning, so that only its call is ever supervised."""
    PREVIEW_FIRST = "preview_in_first_chunk"
    """The call or the answer stands in the first chunk: there is reasoning, and no level shows any of it."""
    UNSURE = "unsure_segmentation"
    """No keyword fits anywhere, or in more than half of the reasoning; the chunks are paragraphs without a type."""
    COARSE = "coarse_segmentation"
    """One chunk is most of a long reasoning, so that levels hardly differ."""


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
        flag: Which.
        turn: The turn's index; ``None`` where the text says it.
        text: More, in one sentence; may be empty.
    """

    flag: QualityFlag
    turn: int | None = None
    text: str = ""


def quality_flags(trace: ExpertTrace, answer: str | None = None) -> list[Flagged]:
    """Flags of a trace, leaks first, then turn by turn; the final turn, which no privileged context holds, is let be.

    Args:
        trace: The trace.
        answer: The reference's answer, where it is known.
    """
    leaks = [Flagged(QualityFlag.LEAK, None, reason) for reason in leak_reasons(trace, answer)]
    return [*leaks, *_of_turns(trace)]


def flag_names(trace: ExpertTrace, answer: str | None = None) -> list[str]:
    """The names of a trace's flags, each once, in alphabetical order."""
    return sorted({str(flagged.flag) for flagged in quality_flags(trace, answer)})


def _of_turns(trace: ExpertTrace) -> Iterator[Flagged]:
    for index, turn in enumerate(trace.turns):
        if turn.calls and not turn.reasoning.strip():
            yield Flagged(QualityFlag.NO_REASONING, index)
        for reason in hard_reasons(turn.chunks, turn.reasoning, turn.calls):
            yield Flagged(_OF_HARD[reason], index)

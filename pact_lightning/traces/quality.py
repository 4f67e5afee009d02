"""What to know of a trace before one trains on it: quality flags (METHOD section 6)."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from pact_lightning.traces.annotation import hard_reasons
from pact_lightning.traces.leak import leak_reasons
from pact_lightning.traces.schema import ExpertTrace


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

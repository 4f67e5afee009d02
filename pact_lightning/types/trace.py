"""Expert traces, the material of the privileged context (METHOD sections 1 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pact_lightning.types.tool_call import ToolCall


class ChunkType(StrEnum):
    """Semantic types of a piece of reasoning (paper, appendix C)."""

    TASK_RESTATE = "task_restate"
    TOOL_SCAN = "tool_scan"
    TOOL_SELECTION = "tool_selection"
    REQUIRED_ARG_GROUNDING = "required_arg_grounding"
    OPTIONAL_ARG_ANALYSIS = "optional_arg_analysis"
    IRRELEVANT_TOOL_REJECTION = "irrelevant_tool_rejection"
    FAILURE_REFLECTION = "failure_reflection"
    FALLBACK_PLAN = "fallback_plan"
    DECISION_SUMMARY = "decision_summary"
    EXPLICIT_CALL_PREVIEW = "explicit_call_preview"
    FINAL_ANSWER_GROUNDING = "final_answer_grounding"
    OTHER = "other"


class TurnPattern(StrEnum):
    """Roles of an expert turn (paper, appendix C)."""

    INITIAL_ATTEMPT = "initial_attempt"
    COMPARE_THEN_CALL = "compare_then_call"
    RETRY_AFTER_FAILED_CALL = "retry_after_failed_call"
    POST_OBSERVATION_FOLLOWUP = "post_observation_followup"
    FINAL_ANSWER_TURN = "final_answer_turn"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Contiguous piece of a turn's reasoning; the chunks of a turn cover its reasoning once and in order."""

    text: str
    type: ChunkType = ChunkType.OTHER


@dataclass(frozen=True, slots=True)
class ExpertTurn:
    """One expert turn ``(u*_t, a*_t, o*_t)``.

    Attributes:
        chunks: The reasoning, cut into chunks; their texts joined are the reasoning, separators included.
        calls: The tool calls; empty in a turn that answers the user.
        responses: One observation per call.
        pattern: The turn's role.
        answer: Text after the reasoning, in a final turn only (for example ``<answer>42</answer>``).
        reply: Text after the reasoning, in a turn that answers the user and is followed by the task's next user turn.
    """

    chunks: tuple[Chunk, ...]
    calls: tuple[ToolCall, ...] = ()
    responses: tuple[str, ...] = ()
    pattern: TurnPattern = TurnPattern.OTHER
    answer: str = ""
    reply: str | None = None

    @property
    def reasoning(self) -> str:
        """The whole reasoning text."""
        return "".join(chunk.text for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class ExpertTrace:
    """An expert trace ``h*``.

    Attributes:
        turns: The turns that call tools, and those that answer a user turn before the last (``reply``). By
            construction the final answer is **not** among them (leak guard, METHOD section 1).
        final: The final answer turn, for plain supervised warm-up only; no privileged context ever holds it.
        source: The trace's origin, for reports.

    Raises:
        ValueError: A turn neither calls nor replies, or does both, carries an answer, or has fewer or more responses
            than calls.
    """

    turns: tuple[ExpertTurn, ...]
    final: ExpertTurn | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for index, turn in enumerate(self.turns):
            if turn.answer or (turn.reply is None and not turn.calls):
                raise ValueError(f"trace turn {index} must call a tool and give no answer; put the answer in `final`")
            if turn.reply is not None and turn.calls:
                raise ValueError(f"trace turn {index} calls a tool and replies; make two turns of it")
            if len(turn.calls) != len(turn.responses):
                raise ValueError(
                    f"trace turn {index} has {len(turn.calls)} calls but {len(turn.responses)} responses; "
                    "give one response per call"
                )

    @property
    def replies(self) -> int:
        """Number of user turns answered before the last one; each releases one of the task's follow-ups."""
        return sum(turn.reply is not None for turn in self.turns)


def flatten_calls(turns: Sequence[ExpertTurn]) -> tuple[ToolCall, ...]:
    """Return all calls of the given turns, in order."""
    return tuple(call for turn in turns for call in turn.calls)

"""Trajectory: the tokens, turns and stop reason of one rollout, and the components of its tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.tool_call import ParsedCall, ToolCall


class Component(IntEnum):
    """Component that a token belongs to (METHOD section 1); an integer, so a sequence of them makes a tensor."""

    PROMPT = 0
    """System prompt, tool schemas and user turns: context only."""
    REASONING = 1
    """Text between ``<think>`` and ``</think>`` (or before the first call where a model does not mark its thinking)."""
    TOOL_CALL = 2
    """From ``<tool_call>`` to ``</tool_call>``, both included."""
    ANSWER = 3
    """Text of a turn without a tool call, after the reasoning."""
    DELIMITER = 4
    """Control tokens and white space that the policy writes between the others, ``<|im_end|>`` included."""
    OBSERVATION = 5
    """Tool responses and the turn headers around them: context only."""


POLICY_COMPONENTS: frozenset[Component] = frozenset(
    {Component.REASONING, Component.TOOL_CALL, Component.ANSWER, Component.DELIMITER}
)
"""Components of tokens that the policy samples; in a rollout exactly these receive gradient."""


class StopReason(StrEnum):
    """Reasons for the end of a rollout."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MAX_TOKENS_TURN = "max_tokens_turn"
    MAX_TOKENS_TRAJECTORY = "max_tokens_trajectory"
    ENVIRONMENT_FAILED = "environment_failed"


CUT_OFF = frozenset({StopReason.MAX_TOKENS_TURN, StopReason.MAX_TOKENS_TRAJECTORY})
"""Stop reasons of rollouts whose last turn may have been cut off by a limit on its tokens."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Run of token ids of one component in one turn. The ids are authoritative; text is only decoded from them."""

    ids: tuple[int, ...]
    component: Component
    turn: int


@dataclass(frozen=True, slots=True)
class RolloutTurn:
    """One turn of the policy, with the responses to its calls.

    Attributes:
        text: The turn as text, end-of-turn token excluded; for reading and parsing only.
        reasoning: The text between the thinking marks (empty without them).
        answer: The text after the reasoning, in a turn without tool-call blocks.
        parsed: One entry per tool-call block, malformed ones included.
        responses: One observation per entry of ``parsed``.
        errors: Per response, true if the call failed or was malformed.
        user: The user turn that this turn's answer released, if any.
        before_calls: The text outside the reasoning in front of the first tool call.
    """

    text: str
    reasoning: str = ""
    answer: str = ""
    parsed: tuple[ParsedCall, ...] = ()
    responses: tuple[str, ...] = ()
    errors: tuple[bool, ...] = ()
    user: UserTurn | None = None
    before_calls: str = ""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The well-formed calls, in order."""
        return tuple(entry.call for entry in self.parsed if entry.call is not None)


@dataclass(slots=True)
class Trajectory:
    """One rollout ``tau``.

    Attributes:
        task_id: The task's id, by which groups are formed.
        sample: Index ``k`` within the group.
        prompt_ids: The prompt ``x``, with the very tokens that the sampler saw.
        segments: Everything after the prompt, in order.
        turns: The turns, parsed.
        stop_reason: The reason for its end.
        sampled_logps: Log-probability of every policy token under the sampling distribution, in order.
        environment_reward: The result of the environment's own ``reward()``, if it has one.
        tool_calls: Number of executed calls.
        tool_timeouts: Number of calls that exceeded their time limit.
        unanswered_calls: Number of calls without an answer, timeouts included.
        environment_failures: Number of failures of ``reward`` or ``close`` after the rollout.
    """

    task_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    segments: list[Segment] = field(default_factory=list)
    turns: list[RolloutTurn] = field(default_factory=list)
    stop_reason: StopReason = StopReason.ANSWERED
    sampled_logps: list[float] = field(default_factory=list)
    environment_reward: float | None = None
    tool_calls: int = 0
    tool_timeouts: int = 0
    unanswered_calls: int = 0
    environment_failures: int = 0

    @property
    def final_answer(self) -> str | None:
        """Text of the last turn after the reasoning; ``None`` if the last user turn was not answered."""
        if self.stop_reason is not StopReason.ANSWERED or not self.turns:
            return None
        return self.turns[-1].answer

    def calls_run(self) -> list[tuple[ToolCall, ...]]:
        """Return the well-formed calls of every turn, ``[T]``, without those of a cut-off turn that were never run."""
        calls = [turn.calls for turn in self.turns]
        if calls and self.stop_reason in CUT_OFF:
            run = self.turns[-1].parsed[: len(self.turns[-1].responses)]
            calls[-1] = tuple(entry.call for entry in run if entry.call is not None)
        return calls

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the token ids after the prompt, ``[R]``."""
        return np.fromiter((i for segment in self.segments for i in segment.ids), dtype=np.int64)

    def components(self) -> npt.NDArray[np.int64]:
        """Return the :class:`Component` of every token, ``[R]``."""
        return np.fromiter(self._per_token(lambda s: int(s.component)), dtype=np.int64)

    def turn_indices(self) -> npt.NDArray[np.int64]:
        """Return the turn index of every token, ``[R]``."""
        return np.fromiter(self._per_token(lambda s: s.turn), dtype=np.int64)

    def policy_mask(self) -> npt.NDArray[np.bool_]:
        """Return ``M_{i,k}``, the mask of the tokens that the policy wrote, ``[R]``."""
        policy = [int(component) for component in POLICY_COMPONENTS]
        return np.isin(self.components(), policy)

    def _per_token(self, value: Callable[[Segment], int]) -> Iterator[int]:
        for segment in self.segments:
            yield from (value(segment) for _ in segment.ids)

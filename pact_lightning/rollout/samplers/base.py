"""What the rollout engine asks of a sampler: turns, one row at a time, in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
        temperature: Logits are divided by it, in sampling as in training [P]: 1.0.
        greedy: Take the most probable token instead of drawing one; ``temperature`` then only scales log-probs.
    """

    temperature: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        """Checks the temperature.

        Raises:
            ValueError: It is not positive.
        """
        if not self.temperature > 0:
            raise ValueError(f"the sampling temperature must be above 0, got {self.temperature}; use greedy for 0")


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to sample.

    Attributes:
        row: The rollout's number; the sampler remembers the tokens of its earlier turns under it.
        new_ids: Tokens since the row's last sampled token (the whole prompt in its first turn).
        max_new_tokens: The turn ends after so many tokens even without an end-of-turn token.
        seed: Seed of this turn's draws.
        shared_prompt: Rows with the same non-empty key have the same prompt, which is then computed once.
    """

    row: int
    new_ids: Sequence[int]
    max_new_tokens: int
    seed: int
    shared_prompt: str = ""


@dataclass(slots=True)
class TurnOutput:
    """One sampled turn.

    Attributes:
        row: The rollout's number.
        ids: The sampled tokens, the end-of-turn token included where one was sampled.
        logps: Their log-probabilities under the sampling distribution.
        finished: Whether the turn ended by itself, not by its token limit.
    """

    row: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


class Sampler(Protocol):
    """Samples turns for many rows at once. Only token ids of prompts and rollouts ever reach it."""

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Takes turns into work."""
        ...

    def step(self) -> list[TurnOutput]:
        """Advances all rows in work by at least one token and returns the turns that ended."""
        ...

    def release(self, row: int) -> None:
        """Forgets a finished row."""
        ...

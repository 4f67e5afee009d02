"""What the rollout engine asks of a sampler: turns, one row at a time, in any order.

A sampler whose prefill and decoding are timed apart.

Which program samples: the policy itself, or an engine of its own that a recipe names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import nn

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.utils.clock import PhaseClock
from pact_lightning.utils.errors import RunStoppedError


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


class TimedSampler:
    """Measures any sampler: ``submit`` is prefill, ``step`` is decoding.

    A sampler that only queues its turns in ``submit`` has its prefill counted as decoding.

    Args:
        sampler: What samples.
        clock: What is told.
    """

    def __init__(self, sampler: Sampler, clock: PhaseClock) -> None:
        self._sampler = sampler
        self._clock = clock

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Takes turns into work."""
        with self._clock.measure("prefill"):
            self._sampler.submit(requests)

    def step(self) -> list[TurnOutput]:
        """Advances all rows in work."""
        with self._clock.measure("decode"):
            return self._sampler.step()

    def release(self, row: int) -> None:
        """Forgets a finished row."""
        self._sampler.release(row)


@dataclass(frozen=True, slots=True)
class LentPolicy:
    """The policy as a backend gets it.

    Attributes:
        model: The policy with its weights of the moment, in evaluation mode.
        config: How it was loaded.
        stop_ids: Tokens that end a turn.
    """

    model: nn.Module
    config: PolicyConfig
    stop_ids: tuple[int, ...]


class SamplerUnavailableError(RunStoppedError, OSError):
    """What samples is gone, a server that does not come back: the run stops, with everything saved.

    Raised by a backend or by a sampler that it has lent.
    """


@runtime_checkable
class SamplerBackend(Protocol):
    """An engine that samples in the policy's stead; recipes name one by ``class_path`` and ``init_args``.

    One whose samplers hold weights of their own from the moment they are lent, so that the policy can be trained while
    they sample, says so by an attribute ``keeps_weights = True``. Such a sampler is asked for in the main thread, and
    used and given back in another one.
    """

    def check(self, config: PolicyConfig) -> None:
        """Tells, before the policy is loaded, what would keep the backend from sampling it.

        Args:
            config: The policy that is to be loaded.

        Raises:
            ValueError: The backend cannot sample from such a policy.
            OSError: What it needs is not there.
        """
        ...

    @contextmanager
    def lend(self, policy: LentPolicy, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Lends a sampler that holds the policy's present weights.

        Args:
            policy: The policy.
            sampling: How tokens are drawn.
        """
        ...


def keeps_weights(backend: SamplerBackend | None) -> bool:
    """Whether the policy can be trained while a sampler of this backend samples; ``None`` is the policy itself."""
    return bool(getattr(backend, "keeps_weights", False))

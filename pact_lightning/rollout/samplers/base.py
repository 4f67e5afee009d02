"""Protocols of samplers and of the backends that lend them.

A :class:`Sampler` turns the token ids of many rows into their next turns; the rollout engine knows no more of it. It is
the policy itself (``transformers_sampler``), or a :class:`SamplerBackend` that a recipe names lends one (``vllm``).
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
    """Settings of the draws.

    Attributes:
        temperature: Divisor of the logits, in sampling as in training [P]: 1.0.
        greedy: Whether the most probable token is taken; ``temperature`` then only scales log-probabilities.
    """

    temperature: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        """Check the temperature.

        Raises:
            ValueError: The temperature is not positive.
        """
        if not self.temperature > 0:
            raise ValueError(f"the sampling temperature must be above 0, got {self.temperature}; use greedy for 0")


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to sample.

    Attributes:
        row: Number of the rollout; the sampler keeps the tokens of its earlier turns.
        new_ids: Tokens since the row's last sampled token (the whole prompt in its first turn).
        max_new_tokens: Most tokens of the turn, end-of-turn token included.
        seed: Seed of this turn's draws.
        shared_prompt: Key of the prompt; the prompt of rows with the same non-empty key is computed once.
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
        row: Number of the rollout.
        ids: The sampled tokens, with the end-of-turn token if one was sampled.
        logps: Log-probability of each token under the sampling distribution.
        finished: Whether the turn ended with an end-of-turn token.
    """

    row: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


class Sampler(Protocol):
    """Source of turns for many rows at once; only token ids of prompts and rollouts ever reach it."""

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Add turns to those in work."""
        ...

    def step(self) -> list[TurnOutput]:
        """Advance all turns in work by at least one token and return those that ended."""
        ...

    def release(self, row: int) -> None:
        """Forget a finished row."""
        ...


class TimedSampler:
    """Sampler whose ``submit`` is timed as prefill and whose ``step`` is timed as decoding.

    If ``submit`` only queues its turns, their prefill counts as decoding.

    Args:
        sampler: The sampler.
        clock: Clock that takes the times.
    """

    def __init__(self, sampler: Sampler, clock: PhaseClock) -> None:
        self._sampler = sampler
        self._clock = clock

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Add turns to those in work."""
        with self._clock.measure("prefill"):
            self._sampler.submit(requests)

    def step(self) -> list[TurnOutput]:
        """Advance all turns in work."""
        with self._clock.measure("decode"):
            return self._sampler.step()

    def release(self, row: int) -> None:
        """Forget a finished row."""
        self._sampler.release(row)


@dataclass(frozen=True, slots=True)
class LentPolicy:
    """Policy that a backend samples from.

    Attributes:
        model: The policy with its present weights, in evaluation mode.
        config: Configuration that it was loaded with.
        stop_ids: Tokens that end a turn.
    """

    model: nn.Module
    config: PolicyConfig
    stop_ids: tuple[int, ...]


class SamplerUnavailableError(RunStoppedError, OSError):
    """Error of a backend or its sampler that is gone for good, such as a dead server: the run stops, saved."""


@runtime_checkable
class SamplerBackend(Protocol):
    """Engine that samples in the policy's stead; recipes name one by ``class_path`` and ``init_args``.

    A backend sets ``keeps_weights = True`` if its samplers hold their own copy of the weights, since the policy can
    then be trained while they sample. Such a sampler is lent in the main thread, and used and given back in another.
    """

    def check(self, config: PolicyConfig) -> None:
        """Check, before the policy is loaded, that the backend can sample from it.

        Args:
            config: Configuration of the policy.

        Raises:
            ValueError: The backend cannot sample from such a policy.
            OSError: A file or a server that the backend needs is missing.
        """
        ...

    @contextmanager
    def lend(self, policy: LentPolicy, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Lend a sampler with the policy's present weights.

        Args:
            policy: The policy.
            sampling: Settings of the draws.
        """
        ...


def keeps_weights(backend: SamplerBackend | type | None) -> bool:
    """Tell whether the policy can be trained while a backend samples; ``None`` stands for the policy itself."""
    return bool(getattr(backend, "keeps_weights", False))

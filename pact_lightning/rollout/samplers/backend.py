"""Which program samples: the policy itself, or an engine of its own that a recipe names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.samplers.base import Sampler, SamplingConfig


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


class SamplerUnavailableError(OSError):
    """What samples is gone, a server that does not come back: the run stops, with everything saved.

    Raised by a backend or by a sampler that it has lent.
    """


@runtime_checkable
class SamplerBackend(Protocol):
    """An engine that samples in the policy's stead; recipes name one by ``class_path`` and ``init_args``."""

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

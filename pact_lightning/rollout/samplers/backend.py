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

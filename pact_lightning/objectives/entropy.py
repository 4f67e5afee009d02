"""The entropy bonus on rollout tokens (METHOD section 4)."""

from torch import Tensor

from pact_lightning.objectives.aggregate import group_mean


def entropy_bonus(entropy: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the mean entropy, so that adding it to a loss rewards entropy [C].

    Args:
        entropy: Entropy of the policy's next-token distribution at each token, in nats, ``[K, T]``.
        mask: Policy tokens, bool or 0/1, ``[K, T]``. A rollout without one contributes 0 to the mean.

    Returns:
        The scalar loss before its coefficient, aggregated as the surrogate is, and the detached mean as ``entropy``.

    Raises:
        ValueError: Shapes differ, or the mask is empty for the whole group.
    """
    mean = group_mean(entropy, mask)
    return -mean, {"entropy": mean.detach()}

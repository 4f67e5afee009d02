"""KL penalty and entropy bonus on rollout tokens (METHOD section 4).

The penalty is the k3 estimate ``exp(d) - d - 1`` with ``d = log pi_ref - log pi_theta``. Both terms are averaged as the
surrogate is.
"""

import torch
from torch import Tensor

from pact_lightning.objectives.surrogate import check_group, group_mean


def k3_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor, *, clamp: float = 10.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Estimate ``KL(pi_theta || pi_ref)`` by k3: ``exp(d) - d - 1`` per token, with ``d = ref_logp - logp``.

    The estimate is never negative, and unbiased on tokens that ``pi_theta`` sampled. ``d`` is clamped at +-``clamp``
    [C], which bounds one token's penalty; no gradient flows beyond.

    Args:
        logp: Log-probabilities under the policy, ``[K, T]``, in the context of the ratio [D].
        ref_logp: The same under the frozen reference, ``[K, T]``; no gradient flows into it.
        mask: Policy tokens, bool or 0/1, ``[K, T]``. A rollout without one contributes 0 to the mean.
        clamp: Bound on the log-ratio, ``> 0`` [C: 10].

    Returns:
        The scalar loss before its coefficient, and detached scalars: ``kl`` (the loss) and ``kl_clamped`` (share of
        the masked tokens at the bound).

    Raises:
        ValueError: Shapes differ, the mask is empty for the whole group, or ``clamp`` is not positive.
    """
    values, metrics = k3_values(logp, ref_logp, mask, clamp=clamp)
    loss = group_mean(values, mask)  # []
    return loss, {"kl": loss.detach(), **metrics}


def k3_values(logp: Tensor, ref_logp: Tensor, mask: Tensor, *, clamp: float = 10.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the tokens' estimates that :func:`k3_kl` averages, ``[K, T]``, 0 outside the mask.

    Arguments and errors are those of :func:`k3_kl`; of its metrics there is ``kl_clamped``.
    """
    if not clamp > 0.0:
        raise ValueError(f"clamp limits the log-ratio and must be above 0, not {clamp}")
    check_group(mask, logp=logp, ref_logp=ref_logp)
    outside = mask == 0  # [K, T]
    raw = (ref_logp.detach() - logp).masked_fill(outside, 0.0)  # [K, T]
    log_ratio = raw.clamp(-clamp, clamp)  # [K, T]
    clamped = (raw.detach()[~outside].abs() > clamp).float().mean()  # []
    return torch.expm1(log_ratio) - log_ratio, {"kl_clamped": clamped}


def entropy_bonus(entropy: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return minus the mean entropy: adding it to a loss rewards entropy [C].

    Args:
        entropy: Entropy of the policy's next-token distribution at each token, in nats, ``[K, T]``.
        mask: Policy tokens, bool or 0/1, ``[K, T]``. A rollout without one contributes 0 to the mean.

    Returns:
        The scalar loss before its coefficient, and the detached mean as ``entropy``.

    Raises:
        ValueError: Shapes differ, or the mask is empty for the whole group.
    """
    mean = group_mean(entropy, mask)  # []
    return -mean, {"entropy": mean.detach()}

"""Truncated importance weights between sampler and trainer, ``min(pi_old / pi_sampler, C)`` [D]."""

import torch
from torch import Tensor

from pact_lightning.objectives.surrogate import check_group

_MAX_LOG_RATIO = 20.0  # past it only exp() overflows


def truncated_importance_weights(
    logp: Tensor, sampled_logp: Tensor, mask: Tensor, *, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``min(exp(logp - sampled_logp), cap)`` per token: truncated importance sampling [D].

    Rollouts come from the sampler's distribution, and a separate engine rounds differently from the trainer. A token's
    surrogate term times its weight has its expectation under the trainer's policy, except for the part that the cap
    cuts off: the cap bounds the variance at the price of a small bias. Weights are per token, not per rollout: a
    product over thousands of tokens would be noise.

    The surrogate is homogeneous in its advantages: multiplying them by the weights weighs its terms.

    Args:
        logp: Log-probabilities of the rollout tokens under the trainer's policy at sampling time, given the prompt
            alone, ``[K, T]``.
        sampled_logp: The same, as reported by the sampler, ``[K, T]``.
        mask: Policy tokens, bool or 0/1, ``[K, T]``.
        cap: ``C``, the largest weight, at least 1.

    Returns:
        The weights, without gradient, ``[K, T]``, 1 outside the mask; and detached scalars over the group's masked
        tokens: ``weight_mean`` and ``capped`` (share of the tokens whose weight the cap cut).

    Raises:
        ValueError: Shapes differ, the mask is empty for the whole group, or the cap is below 1.
    """
    if not cap >= 1.0:
        raise ValueError(f"the cap must be at least 1, not {cap}: a weight is 1 where sampler and trainer agree")
    ratio = _log_ratio(logp, sampled_logp, mask).exp()  # [K, T]
    weights = ratio.clamp(max=cap)  # [K, T]
    kept = mask != 0  # [K, T]
    return weights, {"weight_mean": weights[kept].mean(), "capped": (ratio[kept] > cap).float().mean()}


def sampling_mismatch(logp: Tensor, sampled_logp: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Measure the distance between the sampler's and the trainer's log-probabilities over a group's masked tokens.

    Args:
        logp: As in :func:`truncated_importance_weights`.
        sampled_logp: As there.
        mask: As there.

    Returns:
        Detached scalars: ``abs_difference`` (mean ``|logp - sampled_logp|``), ``kl`` (k3 estimate of the KL divergence
        of the trainer's policy from the sampler's, ``KL(sampler || trainer)``) and ``ratio_max`` (largest
        ``exp(logp - sampled_logp)``).

    Raises:
        ValueError: Shapes differ, or the mask is empty for the whole group.
    """
    log_ratio = _log_ratio(logp, sampled_logp, mask)[mask != 0]  # [masked tokens]
    return {
        "abs_difference": log_ratio.abs().mean(),
        "kl": (torch.expm1(log_ratio) - log_ratio).mean(),
        "ratio_max": log_ratio.max().exp(),
    }


def _log_ratio(logp: Tensor, sampled_logp: Tensor, mask: Tensor) -> Tensor:
    check_group(mask, logp=logp, sampled_logp=sampled_logp)
    difference = (logp.detach() - sampled_logp.detach()).masked_fill(mask == 0, 0.0)  # [K, T]
    return difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)  # [K, T]

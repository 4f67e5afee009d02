"""Clipped policy surrogate ``L_RL`` of one group (METHOD section 2, eq. 4-5 and 7-8).

    L_RL(r) = - E_{k, n in M} [ min( r_n A_n , clip(r_n, 1 - eps, 1 + eps) A_n ) ]

The mean is taken over a rollout's policy tokens, then over the group's rollouts (METHOD section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_LOG_RATIO = 20.0

FIGURES = ("clip_low", "clip_high", "clip_dual", "ratio_mean", "ratio_max", "approx_kl")
"""Names of the metrics of :func:`clipped_surrogate`."""


@dataclass(frozen=True)
class ClipConfig:
    """Bounds of the surrogate.

    Attributes:
        low: The ratio is clipped at ``1 - low`` [C].
        high: The ratio is clipped at ``1 + high`` [C].
        dual: Bound on the ratio where the advantage is negative [C]; ``null`` for none.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = 3.0


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Average ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` over a group's tokens [P].

    The ratio is ``r = exp(logp - old_logp)``. The contexts of the two select the objective: both under ``x`` give the
    anchor ``L_RL(r^x)``, both under ``c^h`` the trace-conditioned ``L_RL(r^h)``, and ``logp`` under ``c^h`` with
    ``old_logp`` under ``x`` the *cross* variant. At the first step the ratio is 1 and the loss is minus the mean
    advantage.

    For a negative advantage ``r A`` has no lower bound; dual clipping stops it at ``dual_clip * A`` [C], and no
    gradient flows beyond. The log-ratio is clamped at +-20 [D]: past that ``exp`` overflows and its gradient is
    ``nan``.

    Args:
        logp: Log-probabilities of the rollout tokens under the policy, ``[K, T]``, float32 or wider.
        old_logp: The same under the policy that sampled, ``[K, T]``; no gradient flows into it.
        advantages: ``A``, ``[K, T]``; no gradient flows into it.
        mask: Policy tokens ``M``, bool or 0/1, ``[K, T]``. A rollout without one contributes 0 to the mean.
        clip_low: ``eps`` below 1, in ``[0, 1]`` [C: 0.2].
        clip_high: ``eps`` above 1, ``>= 0`` [C: 0.2].
        dual_clip: Bound on the ratio of tokens with negative advantage, ``> 1`` [C: 3.0]; ``None`` for the paper's
            equation as it is printed.

    Returns:
        The scalar loss, and detached scalars over the group's masked tokens: ``clip_low``, ``clip_high`` and
        ``clip_dual`` (share of the tokens stopped by each bound), ``ratio_mean``, ``ratio_max``, and ``approx_kl``
        (k3 estimate of the KL from the sampling policy).

    Raises:
        ValueError: Shapes differ, the mask is empty for the whole group, or a bound is out of its range.
    """
    losses, metrics = clipped_losses(
        logp, old_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    return group_mean(losses, mask), metrics  # []


def clipped_losses(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the tokens' losses that :func:`clipped_surrogate` averages, ``[K, T]``, 0 outside the mask.

    Arguments, metrics and errors are those of :func:`clipped_surrogate`.
    """
    _check_bounds(clip_low, clip_high, dual_clip)
    check_group(mask, logp=logp, old_logp=old_logp, advantages=advantages)
    outside = mask == 0  # [K, T]
    advantages = advantages.detach().masked_fill(outside, 0.0)  # [K, T]
    log_ratio = masked_log_ratio(logp, old_logp, mask)  # [K, T]
    ratio = log_ratio.exp()  # [K, T]
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)  # [K, T]
    if dual_clip is not None:
        bounded = torch.maximum(objective, dual_clip * advantages)  # [K, T]
        objective = torch.where(advantages < 0, bounded, objective)  # [K, T]
    clip = ClipConfig(clip_low, clip_high, dual_clip)
    return -objective, ratio_figures(log_ratio, advantages, mask, clip)


def masked_log_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """Compute ``logp - old_logp``, clamped at +-20 and 0 outside the mask; no gradient flows into ``old_logp``.

    Args:
        logp: Log-probabilities under the policy, ``[K, T]``.
        old_logp: The same under the policy that sampled, ``[K, T]``.
        mask: Policy tokens, ``[K, T]``.
    """
    return (logp - old_logp.detach()).masked_fill(mask == 0, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)  # [K, T]


@torch.no_grad()
def ratio_figures(log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip: ClipConfig) -> dict[str, Tensor]:
    """Compute the metrics of :func:`clipped_surrogate`, by the names :data:`FIGURES`.

    Args:
        log_ratio: Logarithm of the ratio that is clipped, ``[K, T]``.
        advantages: ``A``, ``[K, T]``.
        mask: Policy tokens, ``[K, T]``.
        clip: The bounds.
    """
    inside = mask != 0  # [K, T]
    kept, sign = log_ratio[inside].exp(), advantages[inside].sign()  # [masked tokens]
    stopped_dual = torch.zeros_like(kept) if clip.dual is None else (kept > clip.dual) & (sign < 0)
    return {
        "clip_low": _share((kept < 1.0 - clip.low) & (sign < 0)),
        "clip_high": _share((kept > 1.0 + clip.high) & (sign > 0)),
        "clip_dual": _share(stopped_dual),
        "ratio_mean": kept.mean(),
        "ratio_max": kept.max(),
        "approx_kl": (kept - 1.0 - log_ratio[inside]).mean(),
    }


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over each rollout's masked tokens, then over the group's rollouts [C].

    A rollout without a masked token contributes 0 and still counts as a rollout [D]: a group's scale does not depend
    on how many of its rollouts were cut. Values outside the mask are never read: they may be anything, ``nan``
    included, and get a gradient of 0.

    Args:
        values: One value per token, ``[K, T]``.
        mask: Tokens that count, bool or 0/1, ``[K, T]``.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ or are not ``[K, T]``, or the mask is empty for the whole group.
    """
    check_group(mask, values=values)
    kept = mask.bool()  # [K, T]
    sums = values.masked_fill(~kept, 0.0).sum(dim=-1)  # [K]
    return (sums / kept.sum(dim=-1).clamp(min=1)).mean()  # []


def check_group(mask: Tensor, **tensors: Tensor) -> None:
    """Check that named tensors have the mask's shape ``[K, T]`` and that the mask selects a token.

    Raises:
        ValueError: A shape differs, and the sentence names the tensor; or the mask selects no token.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.shape != mask.shape:
            raise ValueError(
                f"{name} and mask must both have the shape [rollouts, tokens], "
                f"but they have {list(tensor.shape)} and {list(mask.shape)}"
            )
    if not bool(torch.any(mask != 0)):
        raise ValueError("the mask selects no token in the whole group; leave such a group out of the loss")


def _share(condition: Tensor) -> Tensor:
    return condition.float().mean()


def _check_bounds(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not (0.0 <= clip_low <= 1.0 and clip_high >= 0.0):
        raise ValueError(f"clipping needs 0 <= clip_low <= 1 and clip_high >= 0, not {clip_low} and {clip_high}")
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip limits a ratio from above and must be above 1 (or null), not {dual_clip}")

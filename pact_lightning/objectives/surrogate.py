"""How per-token values of a group become one number (METHOD section 4, aggregation).

The clipped policy surrogate ``L_RL`` (METHOD section 2, eq. 4-5 and 7-8).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a rollout's masked tokens, then over the group's rollouts [C].

    A rollout without a masked token contributes 0 and still counts as a rollout [D], so that a group's scale does not
    depend on how many of its rollouts were cut. Values outside the mask are never read: they may be anything, ``nan``
    included, and get a gradient of 0.

    Args:
        values: One value per token, ``[K, T]``.
        mask: Which tokens count, bool or 0/1, ``[K, T]``.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ or are not ``[K, T]``, or the mask is empty for the whole group.
    """
    check_group(mask, values=values)
    kept = mask.bool()
    sums = values.masked_fill(~kept, 0.0).sum(dim=-1)
    return (sums / kept.sum(dim=-1).clamp(min=1)).mean()


def check_group(mask: Tensor, **tensors: Tensor) -> None:
    """Checks that the named tensors have the mask's shape ``[K, T]`` and that some token of the group is masked in.

    Raises:
        ValueError: They have not, or none is; the sentence names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.shape != mask.shape:
            raise ValueError(
                f"{name} and mask must both have the shape [rollouts, tokens], "
                f"but they have {list(tensor.shape)} and {list(mask.shape)}"
            )
    if not bool(torch.any(mask != 0)):
        raise ValueError("the mask selects no token in the whole group; leave such a group out of the loss")


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
    """``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` per token, averaged over the group [P].

    The ratio is ``r = exp(logp - old_logp)``. Which objective this is, is decided by the contexts of the two: both
    under ``x`` give the anchor ``L_RL(r^x)``, both under ``c^h`` the trace-conditioned ``L_RL(r^h)``, and ``logp``
    under ``c^h`` with ``old_logp`` under ``x`` the *cross* variant. At the first step the ratio is 1 and the loss is
    minus the mean advantage.

    For a negative advantage ``r A`` has no lower bound; dual clipping stops it at ``dual_clip * A`` [C], and no
    gradient flows beyond. The log-ratio is clamped at +-20 [D]: past that only ``exp`` overflows, whose gradient
    would be ``nan``.

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
    _check_bounds(clip_low, clip_high, dual_clip)
    check_group(mask, logp=logp, old_logp=old_logp, advantages=advantages)
    outside = mask == 0
    advantages = advantages.detach().masked_fill(outside, 0.0)
    log_ratio = (logp - old_logp.detach()).masked_fill(outside, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip is not None:
        bounded = torch.maximum(objective, dual_clip * advantages)
        objective = torch.where(advantages < 0, bounded, objective)
    loss = -group_mean(objective, mask)
    with torch.no_grad():
        kept, sign = ratio[~outside], advantages[~outside].sign()
        stopped_dual = torch.zeros_like(kept) if dual_clip is None else (kept > dual_clip) & (sign < 0)
        metrics = {
            "clip_low": _share((kept < 1.0 - clip_low) & (sign < 0)),
            "clip_high": _share((kept > 1.0 + clip_high) & (sign > 0)),
            "clip_dual": _share(stopped_dual),
            "ratio_mean": kept.mean(),
            "ratio_max": kept.max(),
            "approx_kl": (kept - 1.0 - log_ratio[~outside]).mean(),
        }
    return loss, metrics


def _share(condition: Tensor) -> Tensor:
    return condition.float().mean()


def _check_bounds(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not (0.0 <= clip_low <= 1.0 and clip_high >= 0.0):
        raise ValueError(f"clipping needs 0 <= clip_low <= 1 and clip_high >= 0, not {clip_low} and {clip_high}")
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip bounds a ratio from above and must be > 1 (or null), not {dual_clip}")

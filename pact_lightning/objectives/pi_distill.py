"""pi-Distill: the policy that sees the trace samples, and teaches itself without the trace (arXiv 2602.04942).

Off-spec here: the trace reaches the sampler, ``tau ~ pi_old(. | c^h)``. On the same rollouts, with shared weights::

    L = alpha [ L_RL(pi_theta(tau | c^h) / pi_old(tau | c^h)) + lambda KL ]
        + (1 - alpha) [ L_RL(pi_theta(tau | x) / pi_old(tau | c^h)) + lambda KL ]
    KL = KL(pi_theta(. | c^h) || pi_theta(. | x))

The KL is estimated at the sampled tokens by k3, ``exp(-D) + D - 1`` with ``D`` the privilege gap. In either term its
gradient flows into that term's own context, and the other one is fixed [D].
"""

from typing import Literal

import torch
from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.surrogate import ClipConfig

_MAX_GAP = 10.0


class PiDistill(Objective):
    """Teacher and student on the teacher's rollouts; off-spec, for ``data.off_spec_share`` above 0.

    Rollouts that were sampled from the prompt alone have the plain surrogate.

    Args:
        alpha: Weight of the teacher's term, 0 to 1; at 0 or 1 there is one term, and one forward.
        kl: ``lambda``, ``>= 0``.

    Raises:
        ValueError: A value is out of its range.
    """

    figures = ("context_kl",)
    needs_gap = True

    def __init__(self, alpha: float = 0.5, kl: float = 0.01) -> None:
        if not (0.0 <= alpha <= 1.0 and 0.0 <= kl < float("inf")):
            raise ValueError(f"pi-Distill needs alpha in [0, 1] and a finite kl >= 0, not {alpha} and {kl}")
        self.alpha = alpha
        self.kl = kl
        contexts: list[Literal["trace", "prompt"]] = ["trace"] if alpha > 0 else []
        self.off_spec_contexts = (*contexts, "prompt") if alpha < 1 else ("trace",)

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token in the context that it is scored in, ``[K, T]``."""
        losses, figures = super().losses(tokens, clip)
        if not tokens.off_spec or tokens.gap is None:
            return losses, figures | {"context_kl": losses.new_zeros(())}
        kept = tokens.mask != 0  # [K, T]
        logp, gap = tokens.logp.masked_fill(~kept, 0.0), tokens.gap.masked_fill(~kept, 0.0)
        moving = logp - logp.detach()  # 0, with the gradient of this context
        gap = (gap + (moving if tokens.under_trace else -moving)).clamp(-_MAX_GAP, _MAX_GAP)
        divergence = torch.expm1(-gap) + gap  # [K, T]
        weight = self.alpha if tokens.under_trace else 1.0 - self.alpha
        return weight * (losses + self.kl * divergence), figures | {"context_kl": divergence.detach()[kept].mean()}

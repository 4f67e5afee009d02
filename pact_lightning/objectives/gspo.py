"""GSPO: one ratio per rollout (Zheng et al., arXiv 2507.18071).

    s_k = ( pi_theta(tau_k) / pi_old(tau_k) )^(1 / |M_k|)
    L   = - E_k [ min( s_k A , clip(s_k, 1 - eps_low, 1 + eps_high) A ) ]

The ratio is the geometric mean of the tokens' ratios. Advantages may differ from turn to turn: then the loss is that of
the paper's token variant, in which ``s_k`` has the token's own gradient; where a rollout has one advantage the two
have the same value and gradient.
"""

import torch
from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.surrogate import ClipConfig, clipped_losses, masked_log_ratio


class GSPO(Objective):
    """Clipped surrogate of the sequence ratio; its bounds are ``model.clip``, which the paper sets to 3e-4 and 4e-4."""

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        inside = tokens.mask != 0  # [K, T]
        log_ratio = masked_log_ratio(tokens.logp, tokens.old_logp, tokens.mask).detach()  # [K, T]
        sequence = log_ratio.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)  # [K, 1]
        # In value the sequence's ratio, in gradient the token's: pi_theta over itself without gradient is 1.
        logp = tokens.logp.masked_fill(~inside, 0.0)  # [K, T]
        logp = sequence + (logp - logp.detach())  # [K, T]
        return clipped_losses(
            logp,
            torch.zeros_like(logp),
            tokens.advantages,
            tokens.mask,
            clip_low=clip.low,
            clip_high=clip.high,
            dual_clip=clip.dual,
        )

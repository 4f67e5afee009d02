"""CISPO: clipped weights instead of clipped updates (MiniMax-M1, arXiv 2506.13585).

    w_n = sg clip(r_n, 1 - eps_low, 1 + eps_high)
    L   = - E_n [ w_n A_n log pi_theta(tau_n) ]

No token loses its gradient, however far its ratio is.
"""

from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.surrogate import ClipConfig, check_group, masked_log_ratio, ratio_figures


class CISPO(Objective):
    """Policy gradient with truncated importance weights, whose bounds are ``model.clip``; ``low: 1`` is no lower bound.

    ``model.clip.dual`` bounds the weight of a negative advantage as it does elsewhere; the paper has none.
    """

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        check_group(tokens.mask, logp=tokens.logp, old_logp=tokens.old_logp, advantages=tokens.advantages)
        outside = tokens.mask == 0  # [K, T]
        advantages = tokens.advantages.detach().masked_fill(outside, 0.0)  # [K, T]
        log_ratio = masked_log_ratio(tokens.logp, tokens.old_logp, tokens.mask).detach()  # [K, T]
        weights = log_ratio.exp().clamp(1.0 - clip.low, 1.0 + clip.high)  # [K, T]
        if clip.dual is not None:
            weights = weights.where(advantages >= 0, weights.clamp(max=clip.dual))  # [K, T]
        losses = -weights * advantages * tokens.logp.masked_fill(outside, 0.0)  # [K, T]
        return losses, ratio_figures(log_ratio, advantages, tokens.mask, clip)

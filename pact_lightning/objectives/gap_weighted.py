"""Gap weights: the surrogate under the prompt, with more weight on tokens that the trace makes improbable [D].

    D_n = log pi(tau_n | c^h) - log pi(tau_n | x)                                        without gradient
    w_n = clip(exp(-s D_n), 1 / C, C),   A_n <- A_n w_n / (mean of w over the rollout's policy tokens)

A control for the trace-conditioned surrogate. The gradient of ``log pi(tau_n | c^h)`` is the larger, the less probable
the token is under the trace; here that weight alone is kept, and no ratio knows the trace.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.rlsd import gap_figures
from pact_lightning.objectives.surrogate import ClipConfig


class GapWeighted(Objective):
    """Clipped surrogate whose tokens weigh the more, the less the trace expects them; ``ratio_context: prompt``.

    A rollout's weights have a mean of 1, so that the learning rate means what it did. A prompt without a trace has the
    plain surrogate.

    Args:
        strength: ``s``, the strength of the weighting; 0 is the plain surrogate.
        most: ``C``: weights stay within ``1 / most`` and ``most`` before their mean is taken out.

    Raises:
        ValueError: A value is out of its range.
    """

    figures = ("gap", "gap_weight")
    needs_gap = True

    def __init__(self, strength: float = 1.0, most: float = 5.0) -> None:
        if not 0.0 <= strength < float("inf") or not 1.0 <= most < float("inf"):
            raise ValueError(f"GapWeighted needs a strength >= 0 and a largest weight >= 1, not {strength} and {most}")
        self.strength = strength
        self.most = most

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        weights = torch.ones_like(tokens.advantages)  # [K, T]
        if tokens.gap is not None:
            kept = tokens.mask != 0  # [K, T]
            bound = torch.tensor(self.most).log().item()
            weights = (-self.strength * tokens.gap).clamp(-bound, bound).exp().masked_fill(~kept, 0.0)
            weights = weights * (kept.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1e-9))
        losses, metrics = super().losses(replace(tokens, advantages=tokens.advantages * weights), clip)
        return losses, metrics | gap_figures(tokens, weights)

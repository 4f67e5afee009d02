"""RLSD: the sign of the reward, the size of the privilege gap (arXiv 2604.03128).

    D_n = log pi(tau_n | c^h) - log pi(tau_n | x)                                        without gradient
    A_n <- A_n [ (1 - l) + l clip(exp(sign(A_n) D_n), 1 - e, 1 + e) ]

A token of a good rollout earns more where the trace makes it more probable, one of a bad rollout where less.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.surrogate import ClipConfig

_LARGEST_GAP = 20.0  # past it only exp() overflows


class RLSD(Objective):
    """Clipped surrogate with advantages reweighted token by token. A prompt without a trace keeps its advantages.

    Args:
        strength: ``l``, the strength of the reweighting, 0 to 1; 0 is the plain surrogate.
        clip: ``e``: weights stay within ``1 - clip`` and ``1 + clip``.

    Raises:
        ValueError: A value is out of its range.
    """

    figures = ("gap", "gap_weight")
    needs_gap = True

    def __init__(self, strength: float = 0.5, clip: float = 0.2) -> None:
        if not 0.0 <= strength <= 1.0 or not 0.0 <= clip <= 1.0:
            raise ValueError(f"RLSD needs a strength and a clip from 0 to 1, not {strength} and {clip}")
        self.strength = strength
        self.clip = clip

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        weights = torch.ones_like(tokens.advantages)  # [K, T]
        if tokens.gap is not None:
            evidence = (tokens.advantages.sign() * tokens.gap).clamp(-_LARGEST_GAP, _LARGEST_GAP).exp()  # [K, T]
            weights = 1.0 - self.strength + self.strength * evidence.clamp(1.0 - self.clip, 1.0 + self.clip)  # [K, T]
        losses, metrics = super().losses(replace(tokens, advantages=tokens.advantages * weights), clip)
        return losses, metrics | gap_figures(tokens, weights)


def gap_figures(tokens: RolloutTokens, weights: Tensor) -> dict[str, Tensor]:
    """Average the privilege gap and the weights made of it over the policy tokens; without a trace they are 0 and 1.

    Args:
        tokens: The tokens.
        weights: Factors of the advantages, ``[K, T]``.
    """
    inside = tokens.mask != 0  # [K, T]
    gap = weights.new_zeros(()) if tokens.gap is None else tokens.gap[inside].mean()
    return {"gap": gap, "gap_weight": weights[inside].mean()}

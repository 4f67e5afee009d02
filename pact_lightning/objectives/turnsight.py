"""TurnSight: advantages reweighted turn by turn by the privilege gap (METHOD section 8).

d_t = mean of D_n over the policy tokens of turn t,   D_n = log pi(tau_n | c^h) - log pi(tau_n | x)
A_n <- A_n [ 0.5 + 0.5 (1 + 0.5 tanh(sign(A_n) d_t)) ]                               without gradient
"""

from dataclasses import replace

import torch
from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.rlsd import gap_figures
from pact_lightning.objectives.surrogate import ClipConfig


class TurnSight(Objective):
    """Clipped surrogate with advantages reweighted by turn. A prompt without a trace keeps its advantages.

    Args:
        mix: Share of the reweighted advantage beside the plain one, 0 to 1.
        scale: Largest change of the reweighted advantage, 0 to 1.

    Raises:
        ValueError: A value is out of its range.
    """

    figures = ("gap", "gap_weight")
    needs_gap = True

    def __init__(self, mix: float = 0.5, scale: float = 0.5) -> None:
        if not 0.0 <= mix <= 1.0 or not 0.0 <= scale <= 1.0:
            raise ValueError(f"TurnSight needs a mix and a scale from 0 to 1, not {mix} and {scale}")
        self.mix = mix
        self.scale = scale

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        weights = torch.ones_like(tokens.advantages)  # [K, T]
        if tokens.gap is not None:
            by_turn = turn_means(tokens.gap, tokens.mask, tokens.turns)  # [K, T]
            change = self.scale * torch.tanh(tokens.advantages.sign() * by_turn)  # [K, T]
            weights = 1.0 - self.mix + self.mix * (1.0 + change)  # [K, T]
        losses, metrics = super().losses(replace(tokens, advantages=tokens.advantages * weights), clip)
        return losses, metrics | gap_figures(tokens, weights)


def turn_means(values: Tensor, mask: Tensor, turns: Tensor) -> Tensor:
    """Give every token the mean over the policy tokens of its turn, ``[K, T]``.

    Args:
        values: One value per token, ``[K, T]``; those outside the mask are never read.
        mask: Policy tokens, ``[K, T]``.
        turns: Turn index of every token, ``[K, T]``.
    """
    inside = (mask != 0).to(values.dtype)  # [K, T]
    slots = values.new_zeros(values.shape[0], int(turns.max()) + 1)  # [K, turns]
    sums = slots.scatter_add(1, turns, values.masked_fill(mask == 0, 0.0))  # [K, turns]
    counts = slots.scatter_add(1, turns, inside).clamp(min=1)  # [K, turns]
    return (sums / counts).gather(1, turns)  # [K, T]

"""OPSD: on-policy self-distillation (arXiv 2602.04942, 2601.18734).

    L_n = L_RL(r^x) + lambda KL( pi_theta(. | x, tau_<n) || sg pi_theta(. | c^h, tau_<n) )

The policy that knows the trace teaches the one that does not, on the latter's own rollouts, over the whole vocabulary.
"""

from torch import Tensor

from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.surrogate import ClipConfig


class OPSD(Objective):
    """Clipped surrogate under the prompt, and a pull towards the policy under the trace; ``ratio_context: prompt``.

    Args:
        weight: ``lambda``, ``>= 0``.
        with_rl: Whether the surrogate is there too; without it the divergence alone is minimised.

    Raises:
        ValueError: The weight is negative or not finite.
    """

    figures = ("divergence",)
    needs_divergence = True

    def __init__(self, weight: float = 1.0, with_rl: bool = True) -> None:
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"OPSD's weight must be finite and >= 0, not {weight}")
        self.weight = weight
        self.with_rl = with_rl

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token, ``[K, T]``; see :meth:`Objective.losses`."""
        losses, metrics = super().losses(tokens, clip)
        if not self.with_rl:
            losses = losses * 0.0
        if tokens.divergence is None:
            return losses, metrics | {"divergence": losses.new_zeros(())}
        divergence = tokens.divergence.masked_fill(tokens.mask == 0, 0.0)  # [K, T]
        found = divergence.detach()[tokens.mask != 0].mean()
        return losses + self.weight * divergence, metrics | {"divergence": found}

"""Objective: the loss of every token of a prompt's rollouts, as a pure function of what is known about the token.

A method of one's own is a subclass of :class:`Objective`, which a recipe names as ``model.objective``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pact_lightning.objectives.surrogate import ClipConfig, clipped_losses


@dataclass(frozen=True, slots=True)
class RolloutTokens:
    """The tokens of some rollouts of one prompt, ``K`` rows of at most ``T`` tokens.

    Attributes:
        logp: Log-probabilities under the policy, in the context of the ratio; the gradient flows through them.
        old_logp: The same under the policy that sampled.
        advantages: ``A``.
        mask: Policy tokens ``M``, 0/1. Values outside may be anything.
        turns: Turn index of every token, integers.
        gap: The privilege gap ``D = log pi(tau_n | c^h) - log pi(tau_n | x)`` under the present weights, without
            gradient; ``None`` for a prompt without a trace, and for an objective without ``needs_gap``.
        divergence: ``KL(pi_theta(. | x) || sg pi_theta(. | c^h))`` at every token, over the whole vocabulary, with its
            gradient; ``None`` for a prompt without a trace, and for an objective without ``needs_divergence``.
        off_spec: Whether these rollouts were sampled with the trace in their prompt (``data.off_spec_share``), so that
            ``old_logp`` is under ``c^h``.
        under_trace: Whether ``logp`` is under ``c^h``.
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    turns: Tensor
    gap: Tensor | None = None
    divergence: Tensor | None = None
    off_spec: bool = False
    under_trace: bool = False


class Objective:
    """PACT's own: the clipped surrogate, token by token [P]. Subclasses override :meth:`losses`.

    The mean over the tokens is the module's (``model.aggregation``), as are KL, entropy and SFT terms. A loss must be
    homogeneous in the advantages, but for terms without them: where a sampler's probabilities are off, the advantages
    are multiplied by weights.

    Attributes:
        figures: Names of the metrics that :meth:`losses` returns beside :data:`~.surrogate.FIGURES`, logged as
            ``train/NAME``: means over tokens.
        needs_gap: Whether :meth:`losses` reads the privilege gap, at the price of one more forward without gradient for
            every prompt that has a trace.
        needs_divergence: Whether it reads the divergence, at the price of that forward and of a second pass of the head
            over the rollouts' tokens. It needs ``model.ratio_context: prompt``.
        off_spec_contexts: Contexts in which rollouts are scored that were sampled with the trace in their prompt, each
            by a call of :meth:`losses`: the ``trace`` that they were sampled with, the ``prompt`` alone, or both.
    """

    figures: ClassVar[tuple[str, ...]] = ()
    needs_gap: ClassVar[bool] = False
    needs_divergence: ClassVar[bool] = False
    off_spec_contexts: tuple[Literal["trace", "prompt"], ...] = ("trace",)

    def losses(self, tokens: RolloutTokens, clip: ClipConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of every token.

        Args:
            tokens: The rollouts' tokens.
            clip: The bounds ``model.clip``.

        Returns:
            The losses, ``[K, T]``, and detached scalars over the masked tokens: all of :data:`~.surrogate.FIGURES` and
            of ``figures``.
        """
        return clipped_losses(
            tokens.logp,
            tokens.old_logp,
            tokens.advantages,
            tokens.mask,
            clip_low=clip.low,
            clip_high=clip.high,
            dual_clip=clip.dual,
        )

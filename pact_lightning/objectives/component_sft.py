"""Component-aware SFT on the expert trace (METHOD section 2, eq. 9-11).

At training step ``s``, with weights by component::

    m_n(s) = 1            n in the active reasoning prefix
             lambda_a(s)  n in a tool-call span
             0            elsewhere
    L_SFT  = -(1/Z) sum_n m_n log pi_theta(h*_n | x, h*_<n),    Z = sum_n m_n
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pact_lightning.objectives.annealing import Supervision
from pact_lightning.types.trajectory import POLICY_COMPONENTS, Component

Normalizer = Literal["weight_sum", "token_count"]
"""``weight_sum`` divides by ``Z = sum m`` [P]; ``token_count`` by the number of tokens with ``m > 0`` [D]."""


def component_sft_loss(
    logp: Tensor, weights: Tensor, *, normalizer: Normalizer = "weight_sum", factors: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``-(1/Z) sum_n m_n log pi(h*_n | x, h*_<n)`` [P].

    With ``weight_sum`` a factor common to all weights cancels: where no reasoning token is active, ``lambda_a`` has no
    effect. ``token_count`` lets it act there (METHOD 5.4). Log-probabilities of tokens with weight 0 are never read.

    Args:
        logp: Log-probabilities of the trace's tokens under the policy, ``[N]``.
        weights: ``m``, ``[N]``, ``>= 0``; see :func:`sft_weights`. No gradient flows into them.
        normalizer: Divisor of the weighted sum, see :data:`Normalizer`.
        factors: Further factors of the tokens' terms, ``[N]``, which leave the divisor as it is; ``None`` for none. No
            gradient flows into them.

    Returns:
        The scalar loss, and detached scalars: ``tokens`` (with ``m > 0``), ``weight_sum`` (``Z``) and ``skipped``. With
        ``Z = 0`` the term is skipped: ``skipped`` is 1 and the loss is 0 with a gradient of 0.

    Raises:
        ValueError: Shapes differ, a weight is negative or not finite, or the normalizer is unknown.
    """
    if normalizer not in get_args(Normalizer):
        raise ValueError(f"unknown normalizer {normalizer!r}; use one of {', '.join(get_args(Normalizer))}")
    if logp.dim() != 1 or logp.shape != weights.shape:
        raise ValueError(
            f"logp and weights must both have the shape [tokens], "
            f"but they have {list(logp.shape)} and {list(weights.shape)}"
        )
    weights = weights.detach().to(logp.dtype)  # [N]
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("SFT weights must be finite and >= 0; check the reasoning and tool-call scales")
    active = weights > 0  # [N]
    tokens, weight_sum = active.sum(), weights.sum()  # [], []
    # Over no token the sum is 0 and divides to 0, still connected to logp.
    terms = weights * logp.masked_fill(~active, 0.0)  # [N]
    total = (terms if factors is None else terms * factors.detach().masked_fill(~active, 0.0)).sum()  # []
    scale = weight_sum if normalizer == "weight_sum" else tokens
    loss = -total / torch.where(tokens > 0, scale, 1)  # []
    return loss, {"tokens": tokens.to(logp.dtype), "weight_sum": weight_sum, "skipped": (tokens == 0).to(logp.dtype)}


def likelihood_weights(components: Tensor) -> Tensor:
    """Weigh the expert's own tokens alike: 1 for what a policy writes, 0 elsewhere; float32, ``[N]``.

    Args:
        components: :class:`~pact_lightning.types.trajectory.Component` of each token, integers, ``[N]``.
    """
    return torch.isin(components, torch.tensor([int(component) for component in sorted(POLICY_COMPONENTS)])).float()


def sft_weights(
    components: Tensor, min_levels: Tensor, supervision: Supervision, *, supervise_delimiters: bool = False
) -> Tensor:
    """Weigh every token of an expert trace: ``m_n`` under the given supervision [P].

    Args:
        components: :class:`~pact_lightning.types.trajectory.Component` of each token, integers, ``[N]``.
        min_levels: Lowest level at which a reasoning token is active, 1 to 4, and 5 for never; ``[N]``. Not read for
            other components.
        supervision: Level and tool-call scale in force.
        supervise_delimiters: Whether delimiters weigh as much as tool calls; else 0 [D].

    Returns:
        1 for active reasoning, ``tool_call_scale`` for tool calls, 0 elsewhere; float32, ``[N]``.

    Raises:
        ValueError: The shapes differ.
    """
    if components.dim() != 1 or components.shape != min_levels.shape:
        raise ValueError(
            f"components and min_levels must both have the shape [tokens], "
            f"but they have {list(components.shape)} and {list(min_levels.shape)}"
        )
    reasoning = (components == Component.REASONING) & (min_levels <= supervision.level)  # [N]
    scaled = components == Component.TOOL_CALL  # [N]
    if supervise_delimiters:
        scaled = scaled | (components == Component.DELIMITER)  # [N]
    return reasoning.float() + supervision.tool_call_scale * scaled.float()  # [N]

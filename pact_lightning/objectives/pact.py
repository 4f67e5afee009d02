"""Total loss of one prompt (METHOD section 2, eq. 12-14).

For prompt ``i``, anchored where ``z_i = 1``::

    L_i = (1 - z_i) [ L_RL(r^h) + beta_SFT L_SFT ] + z_i L_RL(r^x)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """Weights of the terms beside the surrogate. A term with weight 0 is left out and need not be computed.

    Attributes:
        sft: ``beta_SFT``, the coefficient of the component-aware SFT term [P].
        kl: Coefficient of the KL term [P].
        entropy: Coefficient of the entropy bonus [C].
    """

    sft: float = 0.1
    kl: float = 0.001
    entropy: float = 0.001

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A coefficient is negative or not finite.
        """
        for name in ("sft", "kl", "entropy"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"the {name} coefficient must be finite and >= 0, not {value}")


def pact_prompt_loss(
    *,
    anchored: bool,
    rl: Tensor | None,
    kl: Tensor | None = None,
    entropy: Tensor | None = None,
    sft: Tensor | None = None,
    coefficients: Coefficients | None = None,
    rl_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up ``L_i = (1 - z_i) [L_RL(r^h) + beta_SFT L_SFT] + z_i L_RL(r^x)``, plus KL and entropy [P].

    The caller computes the rollout terms (``rl``, ``kl``, ``entropy``) in one context: ``x`` for an anchored prompt,
    otherwise ``c^h``. Their coefficients are the same in both. An anchored prompt gets no trace loss: its ``sft``, if
    passed, is left out.

    A group of zero variance, or of a single rollout, drops its rollout terms together (METHOD 5.10, 5.22). Pass
    ``rl=None``: ``kl`` and ``entropy`` are left out as well, for without a reward signal they alone would move the
    policy. The SFT term of a trace prompt stays.

    A term that is left out is not touched: no gradient, not even 0, flows into it, and a ``nan`` in it does no harm.

    Args:
        anchored: ``z_i``: drawn, or set because the prompt has no trace that fits.
        rl: Surrogate loss, a scalar; ``None`` drops all rollout terms.
        kl: KL loss before its coefficient, a scalar; ``None`` where its coefficient is 0.
        entropy: Entropy loss (minus the mean entropy) before its coefficient, a scalar; ``None`` as for ``kl``.
        sft: SFT loss before ``beta_SFT``, a scalar; ``None`` for an anchored prompt or where ``beta_SFT`` is 0.
        coefficients: Weights of the terms; ``None`` for the defaults of :class:`Coefficients`.
        rl_weight: Weight of the surrogate, 1 but in CHORD's mixture.

    Returns:
        The scalar ``L_i``, and detached scalars: ``loss``, each term included, before its coefficient (``rl``,
        ``kl``, ``entropy``, ``sft``), ``anchored`` and ``rl_dropped`` (0 or 1). With no term left the loss is a plain 0
        that requires no gradient; the prompt still counts in the mean over the batch.

    Raises:
        ValueError: A term is missing although its coefficient is not 0 and the prompt needs it.
    """
    weights = coefficients or Coefficients()
    terms: list[tuple[str, float, Tensor | None]] = []
    if rl is not None:
        terms += [("rl", rl_weight, rl), ("kl", weights.kl, kl), ("entropy", weights.entropy, entropy)]
    if not anchored:
        terms.append(("sft", weights.sft, sft))
    present = [(name, weight, _required(name, weight, term)) for name, weight, term in terms if weight != 0.0]
    given = next((term for term in (rl, kl, entropy, sft) if term is not None), torch.zeros(()))
    total = given.new_zeros(())
    for _, weight, term in present:
        total = total + weight * term
    metrics = {name: term.detach() for name, _, term in present}
    metrics["loss"] = total.detach()
    metrics["anchored"] = total.new_tensor(float(anchored))
    metrics["rl_dropped"] = total.new_tensor(float(rl is None))
    return total, metrics


def _required(name: str, weight: float, term: Tensor | None) -> Tensor:
    if term is None:
        raise ValueError(
            f"the {name} term is missing although its coefficient is {weight}; compute it or set that to 0"
        )
    return term

"""Settings of the SFT term beside PACT's own: the tokens that it imitates, and a weight by their probability.

chord_phi     w_n = sg( p_n (1 - p_n) )          CHORD (arXiv 2508.11408): neither known nor hopeless tokens
trust_region  w_n = sg( p_n / max(p_n, alpha) )  TrSFT: below alpha no token pulls harder than p / alpha
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

TokenWeight = Literal["none", "chord_phi", "trust_region"]
SFTTokens = Literal["pact", "policy"]


@dataclass(frozen=True)
class SFTConfig:
    """Tokens of a trace that the SFT term imitates, and their weights.

    Attributes:
        tokens: ``pact``: active reasoning and tool calls, annealed [P]; ``policy``: all that the expert wrote, alike.
        with_answer: Imitate the final answer turn too, with ``policy``. No privileged context shows it.
        token_weight: ``none`` [P], ``chord_phi`` or ``trust_region``; it multiplies the tokens' terms, not what their
            sum is divided by.
        alpha: Probability below which ``trust_region`` holds a token back [D], in (0, 1].

    Raises:
        ValueError: There is no such choice, ``alpha`` is out of its range, or the answer is asked for with ``pact``.
    """

    tokens: SFTTokens = "pact"
    with_answer: bool = False
    token_weight: TokenWeight = "none"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (("tokens", SFTTokens), ("token_weight", TokenWeight)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"model.sft.{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(kind))}")
        if not (math.isfinite(self.alpha) and 0.0 < self.alpha <= 1.0):
            raise ValueError(f"model.sft.alpha is a probability above 0, not {self.alpha}")
        if self.with_answer and self.tokens == "pact":
            raise ValueError("model.sft.with_answer needs model.sft.tokens: policy; PACT's own tokens hold no answer")

    def factors(self, logp: Tensor) -> Tensor | None:
        """Return the tokens' factors ``w``, ``[N]``, without gradient; ``None`` where all are 1.

        Args:
            logp: Log-probabilities of the trace's tokens, ``[N]``.
        """
        if self.token_weight == "none":
            return None
        probability = logp.detach().exp()  # [N]
        if self.token_weight == "chord_phi":
            return probability * (1.0 - probability)
        return probability / probability.clamp(min=self.alpha)

"""MatchedNorm: a control that trains under the prompt alone, by gradients as large as the trace would make them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pact_lightning.credit.group import Group
from pact_lightning.policy.sharding import common_value
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.update.layout import RatioContext, ScoringJob


class MatchedNorm(PACTModule):
    """PACT with ``L^x`` in place of ``L^h``, its gradient scaled to the norm of ``L^h``'s [D].

    If what helps about the trace-conditioned surrogate is the size of its gradient, this helps as much. In every
    optimiser step, over the prompts that would be scored under their trace::

        g = (|g^h| / |g^x|) g^x + the SFT, KL and entropy terms + the anchored prompts

    ``g^h`` is taken where its ratio is 1, before any clipping. AdamW hardly notices a factor that is the same in all
    steps: what is left is its size beside the other terms, and its change from step to step.

    It costs two more forward and backward passes over those prompts, and needs ``ratio_context: prompt`` and a single
    process. ``train/matched_scale`` is the factor.
    """

    @property
    def metric_names(self) -> frozenset[str]:
        """Names of what a fit logs."""
        return super().metric_names | {"train/matched_scale"}

    def setup(self, stage: str) -> None:
        """Check the settings.

        Raises:
            ValueError: The ratio knows the trace, or several processes train.
        """
        super().setup(stage)
        if self.ratio_context != "prompt":
            raise ValueError(
                f"MatchedNorm trains under the prompt alone, and model.ratio_context is {self.ratio_context!r}; set it "
                "to 'prompt'"
            )
        if stage == "fit" and self.trainer.world_size > 1:
            raise ValueError("MatchedNorm scales the gradient of one process; set trainer.devices and num_nodes to 1")

    def accumulate_gradients(
        self, batch: Sequence[Group], backward: Callable[[Tensor], Any]
    ) -> tuple[list[ScoringJob], dict[str, float]]:
        """Add the batch's gradient to the weights', that of its trace prompts' surrogate scaled."""
        shown = [group for group in batch if self._job(group).context is not None]
        scale = 1.0
        if shown:
            without_old = [replace(group, old_logps=None) for group in shown]
            wanted = self._surrogate_alone(without_old, "trace", backward)
            self.zero_grad()
            found = self._surrogate_alone(shown, "prompt", backward)
            scale = wanted / found if found > 0 else 1.0
            for weight in self.model.parameters():
                if weight.grad is not None:  # the whole batch's gradient, which comes next, holds it once already
                    weight.grad.mul_((scale - 1.0) * len(shown) / len(batch))
        self.log("train/matched_scale", scale, batch_size=len(batch))
        return super().accumulate_gradients(batch, backward)

    def _surrogate_alone(
        self, groups: Sequence[Group], context: RatioContext, backward: Callable[[Tensor], Any]
    ) -> float:
        """Leave the gradient of the groups' surrogate in a context, and return its norm."""
        coefficients, own = self.coefficients, self.ratio_context
        self.coefficients, self.ratio_context = replace(coefficients, sft=0.0, kl=0.0, entropy=0.0), context
        try:
            super().accumulate_gradients(groups, backward)
        finally:
            self.coefficients, self.ratio_context = coefficients, own
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        return common_value(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

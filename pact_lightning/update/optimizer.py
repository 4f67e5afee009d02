"""AdamW with its learning-rate schedule, and the step it takes: clipped, and skipped where it is not finite."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pact_lightning.policy.sharding import common_value


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping.

    Attributes:
        learning_rate: Peak learning rate; 1e-6 is the paper's for full weights [P], adapters need more.
        weight_decay: AdamW's weight decay [C].
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        gradient_clip: Largest norm of the gradient of one optimiser step [C]; 0 switches clipping off.
        schedule: ``constant`` [P], or ``cosine`` down to zero over ``schedule_steps``.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule_steps: Optimiser steps of the cosine schedule; without meaning for ``constant``.
        max_skipped_steps: A step whose gradient is not finite is skipped; so many in a row end the run [D].
        bits: 32 for torch's AdamW; 8 for bitsandbytes' with moments of 8 bits, a quarter of the memory.
    """

    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    gradient_clip: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    schedule_steps: int = 0
    max_skipped_steps: int = 5
    bits: Literal[8, 32] = 32

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value makes no sense.
        """
        if self.learning_rate <= 0 or self.gradient_clip < 0:
            raise ValueError("optimizer.learning_rate must be above 0 and optimizer.gradient_clip at least 0")
        if self.max_skipped_steps < 1:
            raise ValueError("optimizer.max_skipped_steps must be at least 1")
        if self.schedule == "cosine" and self.schedule_steps < 1:
            raise ValueError("optimizer.schedule 'cosine' needs optimizer.schedule_steps, the run's length in steps")
        if self.bits not in (8, 32):
            raise ValueError(f"optimizer.bits is 8 or 32, not {self.bits}")

    def factor(self, step: int) -> float:
        """Return the learning rate at an optimiser step, as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(step / self.schedule_steps, 1.0)))

    def over(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of the given weights."""
        adamw: Any = torch.optim.AdamW
        if self.bits == 8:
            from bitsandbytes.optim.adamw import AdamW8bit

            adamw = AdamW8bit
        optimizer: torch.optim.Optimizer = adamw(
            weights, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return optimizer


def take_over_settings(checkpoint: Mapping[str, Any], config: OptimizerConfig, then: Mapping[str, Any] | None) -> None:
    """Put the present settings into a checkpoint's optimiser and schedule, which would bring back their own.

    Moments and the number of steps stay. A checkpoint of the same settings is left alone, to the last bit.

    Args:
        checkpoint: A checkpoint of a fit, changed in place.
        config: The present settings.
        then: Those that the checkpoint was saved under, by name; ``None`` if it does not say.
    """
    if then == asdict(config):
        return
    schedules = checkpoint.get("lr_schedulers", [])
    for state, schedule in zip(checkpoint.get("optimizer_states", []), schedules, strict=False):
        now = config.learning_rate * config.factor(int(schedule["last_epoch"]))
        schedule["base_lrs"] = [config.learning_rate] * len(schedule["base_lrs"])
        schedule["_last_lr"] = [now] * len(schedule["base_lrs"])
        for group in state["param_groups"]:
            group |= {"lr": now, "initial_lr": config.learning_rate, "weight_decay": config.weight_decay}
            group["betas"] = (config.beta1, config.beta2)


class NonFiniteGradientError(RuntimeError):
    """So many steps in a row had to be skipped that the run cannot be expected to recover."""


@dataclass
class FiniteSteps:
    """The count of skipped steps [D].

    Attributes:
        limit: Skipped steps in a row that end the run.
        skipped: Skipped steps of the run.
        in_a_row: Skipped steps since the last one that was taken.
    """

    limit: int
    skipped: int = 0
    in_a_row: int = 0

    def takes(self, norm: float) -> bool:
        """Return whether the step is to be taken; count it if not.

        Args:
            norm: Norm of the whole gradient.
        """
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    @property
    def exhausted(self) -> bool:
        """True once the limit is reached."""
        return self.in_a_row >= self.limit


def take_step(
    optimizer: LightningOptimizer, schedule: LRScheduler, model: nn.Module, *, clip: float, steps: FiniteSteps
) -> tuple[float, str]:
    """Clip the gradient, step, and clear; the gradient of the whole batch has been gathered by then.

    A step whose gradient is not finite is skipped: weights, optimiser and schedule stay as they are.

    Args:
        optimizer: The optimiser.
        schedule: Its learning-rate schedule.
        model: The model in training.
        clip: Largest norm of the gradient; 0 switches clipping off.
        steps: Counts the steps that are skipped.

    Returns:
        The gradient's norm before clipping, and why the step was skipped; the latter is empty where it was taken.
    """
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = common_value(nn.utils.clip_grad_norm_(weights, clip if clip > 0 else math.inf))
    if not steps.takes(norm):
        why = which_are_not_finite((name, weight.grad) for name, weight in model.named_parameters())
        optimizer.zero_grad()
        return norm, why
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    return norm, ""


def which_are_not_finite(gradients: Iterable[tuple[str, Tensor | None]]) -> str:
    """Name the weights behind a gradient that is not finite, for a message.

    Args:
        gradients: Every trained weight's name and gradient.
    """
    found = [(name, gradient) for name, gradient in gradients if gradient is not None]
    bad = [name for name, gradient in found if not bool(gradient.isfinite().all())]
    if not bad:
        return f"each of the {len(found)} gradients is finite, but their norm overflows"
    return f"{len(bad)} of {len(found)} gradients hold NaN or infinity, the first is that of {bad[0]}"

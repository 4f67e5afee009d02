"""Trainer settings that manual optimisation and rollouts cannot honour, refused with a sentence each."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import BitsandbytesPrecision


def check_trainer(trainer: pl.Trainer) -> None:
    """Checks a Trainer before anything is loaded.

    Raises:
        ValueError: It has a setting that would be ignored or do harm; the sentence says what to use.
    """
    _refuse(trainer.gradient_clip_val is not None, "gradient_clip_val", "model.optimizer.gradient_clip")
    _refuse(
        trainer.accumulate_grad_batches != 1,
        "accumulate_grad_batches",
        "data.prompts_per_step for the batch and model.max_tokens_per_forward for the memory it takes",
    )
    if isinstance(trainer.precision_plugin, BitsandbytesPrecision):
        raise ValueError(
            "trainer.plugins has BitsandbytesPrecision, which would also quantise the adapter and the head; "
            "use model.policy.adapter 'qlora' instead"
        )
    callbacks: Sequence[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, BatchSizeFinder):
            raise ValueError("BatchSizeFinder has no meaning for rollouts; set model.max_tokens_per_forward instead")
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler has no effect here; set data.prompts_per_step to the batch you want"
            )


def _refuse(given: bool, flag: str, instead: str) -> None:
    if given:
        raise ValueError(f"trainer.{flag} has no effect under manual optimisation; set {instead}")

"""Trainer settings that manual optimisation and rollouts cannot honour, each refused with a sentence."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.plugins.precision import BitsandbytesPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from pact_lightning.resume.lightning_internals import saves_distributed


def check_trainer(trainer: pl.Trainer) -> None:
    """Check a Trainer before anything is loaded.

    Raises:
        ValueError: It has a setting that would be ignored or do harm; the sentence says what to use.
    """
    _refuse(trainer.gradient_clip_val is not None, "gradient_clip_val", "model.optimizer.gradient_clip")
    _refuse(
        trainer.accumulate_grad_batches != 1,
        "accumulate_grad_batches",
        "data.prompts_per_step for the batch and model.max_tokens_per_forward for the memory it takes",
    )
    check_plugins(trainer.precision_plugin)
    _refuse(
        trainer.precision not in ("32-true", "bf16-true"),
        "precision",
        "model.policy.dtype; autocast would reach the training step but not the rollouts, and the ratio would not be 1",
    )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"trainer.strategy {type(trainer.strategy).__name__} cannot make rollouts; use `ddp`, or, for full weights "
            "that are to be sharded, lightning.pytorch.strategies.ModelParallelStrategy (FSDP2)"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy) and saves_distributed(trainer.strategy):
        raise ValueError(
            "ModelParallelStrategy would save a folder of one file per process, of which nobody can tell whether it is "
            "whole; set its save_distributed_checkpoint to false"
        )
    callbacks: Sequence[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, BatchSizeFinder):
            raise ValueError("BatchSizeFinder has no meaning for rollouts; set model.max_tokens_per_forward instead")
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler has no effect here; set data.prompts_per_step to the batch you want"
            )


def check_checkpoints(trainer: pl.Trainer) -> None:
    """Check what a fit will save.

    Raises:
        ValueError: A callback would save the weights alone, from which a fit cannot go on.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
            raise ValueError(
                "ModelCheckpoint has save_weights_only, and `--ckpt_path last` could not go on from what it writes; "
                "leave it out (checkpoints hold the trained weights only, so an adapter's are small), and use "
                "pact_lightning.ExportPolicy for a model folder"
            )


def check_plugins(plugins: object) -> None:
    """Check a Trainer's plugins, one or a list; apart from the rest, since Lightning refuses this one on CPUs itself.

    Raises:
        ValueError: One would quantise more than the base.
    """
    for plugin in plugins if isinstance(plugins, list | tuple) else [plugins]:
        if isinstance(plugin, BitsandbytesPrecision):
            raise ValueError(
                "trainer.plugins has BitsandbytesPrecision, which would also quantise the adapter and the head; "
                "use model.policy.adapter 'qlora' instead"
            )


def _refuse(given: bool, flag: str, instead: str) -> None:
    if given:
        raise ValueError(f"trainer.{flag} cannot be honoured under manual optimisation; set {instead}")

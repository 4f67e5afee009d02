"""Trainer flags and callbacks that manual optimisation and rollouts cannot honour, each refused with a sentence.

docs/lightning.md lists what holds for each flag and callback of Lightning's; a test makes it.
"""

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import BitsandbytesPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from pact_lightning.resume.lightning_internals import saves_by_time, saves_distributed

_MANUAL = "does not work with manual optimisation; set"
_REFUSED_FLAGS: tuple[tuple[str, Callable[[pl.Trainer], bool], str], ...] = (
    (
        "gradient_clip_val",
        lambda t: t.gradient_clip_val is not None or t.gradient_clip_algorithm is not None,
        f"{_MANUAL} model.optimizer.gradient_clip, a norm",
    ),
    (
        "accumulate_grad_batches",
        lambda t: t.accumulate_grad_batches != 1,
        f"{_MANUAL} data.prompts_per_step for the batch and model.max_tokens_per_forward for the memory it takes",
    ),
    (
        "precision",
        lambda t: t.precision != "32-true",
        f"{_MANUAL} model.policy.dtype; autocast and casts would reach the training step but not the rollouts, and "
        "the ratio would not be 1",
    ),
    (
        "barebones",
        lambda t: t.barebones,
        "would switch off metrics, checkpoints and validation, which a run needs; leave it out",
    ),
    (
        "overfit_batches",
        lambda t: getattr(t, "overfit_batches", 0) != 0,
        "would validate on batches of training rollouts; give data.train few tasks instead (BundledTasks: count)",
    ),
    (
        "reload_dataloaders_every_n_epochs",
        lambda t: getattr(t, "reload_dataloaders_every_n_epochs", 0) != 0,
        "would lose the current phase when a run is resumed, and each epoch makes new rollouts without it; "
        "leave it out",
    ),
    *(
        (
            f"limit_{stage}_batches",
            lambda t, stage=stage: 0 < getattr(t, f"limit_{stage}_batches") < 1,
            "has no meaning as a fraction, since all tasks are one batch; set the `count` of the tasks, or 0 for none",
        )
        for stage in ("val", "test", "predict")
    ),
)
"""Name, whether it is given, and the rest of the sentence."""

_REFUSED_CALLBACKS: tuple[tuple[type[Callback], str], ...] = (
    (BatchSizeFinder, "has no meaning for rollouts; set model.max_tokens_per_forward instead"),
    (GradientAccumulationScheduler, "has no effect here; set data.prompts_per_step to the batch you want"),
    (
        LearningRateFinder,
        "would train on rollouts of a policy that its own search has changed; set model.optimizer.learning_rate",
    ),
    (
        StochasticWeightAveraging,
        "would sample rollouts with other weights than it saves; set model.optimizer.schedule to `cosine`, which ends "
        "in small steps too",
    ),
    (
        WeightAveraging,
        "would sample rollouts with other weights than it saves; set model.optimizer.schedule to `cosine`, which ends "
        "in small steps too",
    ),
    (BaseFinetuning, "would choose the weights that train; set model.policy.adapter and its target_modules"),
    (ModelPruning, "would change weights behind the optimiser's back; prune the exported model instead"),
    (
        SpikeDetection,
        "would stop the run because of a single batch; model.optimizer.max_skipped_steps handles bad steps",
    ),
)


def check_trainer(trainer: pl.Trainer) -> None:
    """Check a Trainer before anything is loaded.

    Raises:
        ValueError: It has a flag or callback that would be ignored or do harm; the sentence says what to use.
    """
    for flag, given, sentence in _REFUSED_FLAGS:
        if given(trainer):
            raise ValueError(f"trainer.{flag} {sentence}")
    check_plugins(trainer.precision_plugin)
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"trainer.strategy {type(trainer.strategy).__name__} cannot make rollouts; use `ddp`, or, for full weights "
            "that are to be sharded, lightning.pytorch.strategies.ModelParallelStrategy (FSDP2)"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy) and saves_distributed(trainer.strategy):
        raise ValueError(
            "ModelParallelStrategy would save a folder of one file per process, and nothing shows whether it is "
            "complete; set its save_distributed_checkpoint to false"
        )
    for callback in _callbacks(trainer):
        for kind, sentence in _REFUSED_CALLBACKS:
            if isinstance(callback, kind):
                raise ValueError(f"{type(callback).__name__} {sentence}")


def check_checkpoints(trainer: pl.Trainer) -> None:
    """Check what a fit will save.

    Raises:
        ValueError: A callback would save the weights alone, from which a fit cannot go on, or nothing at all.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if saves_by_time(callback):
            raise ValueError(
                "ModelCheckpoint has train_time_interval, with which Lightning saves nothing in manual optimisation; "
                "set every_n_train_steps, or leave both out to save after each phase"
            )
        if callback.save_weights_only:
            raise ValueError(
                "ModelCheckpoint has save_weights_only, and `--ckpt_path last` could not resume from what it writes; "
                "leave it out (checkpoints hold the trained weights only, so an adapter's are small), and use "
                "pact_lightning.ExportPolicy for a model folder"
            )


def check_monitors(trainer: pl.Trainer, metrics: Collection[str]) -> None:
    """Check what callbacks of a fit look at, which Lightning would report after the first phase.

    Args:
        trainer: The Trainer.
        metrics: Names of what the fit logs.

    Raises:
        ValueError: There is no such metric; the sentence names those that are nearest.
    """
    for callback in _callbacks(trainer):
        name = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if name is None or name in metrics or name in ("epoch", "step"):
            continue
        near = get_close_matches(name, metrics, n=3, cutoff=0.3) or sorted(metrics)[:3]
        validated = any(known.startswith("val/") for known in metrics)
        why = "" if validated or not name.startswith("val") else " (nothing is validated: see data.validation)"
        raise ValueError(
            f"{type(callback).__name__} monitors {name!r}, which this fit does not log{why}; there are "
            f"{', '.join(map(repr, near))} and more, in docs/lightning.md"
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


def _callbacks(trainer: pl.Trainer) -> Sequence[Any]:
    found: Sequence[Any] = getattr(trainer, "callbacks", [])
    return found

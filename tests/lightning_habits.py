"""What holds for each flag of Lightning's Trainer and each of its callbacks: rows of docs/lightning.md.

``python tests/lightning_habits.py`` (with ``tests`` in PYTHONPATH) writes the page. A test tries every row.
"""

import inspect
import sys
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import rooms  # noqa: F401  # puts the rooms' tests on the path
from hand_made import quiet_trainer
from lightning.pytorch import callbacks
from shallow_policy import shallow_folder

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.optimizer import OptimizerConfig

PAGE = Path(__file__).parents[1] / "docs" / "lightning.md"


def pact():
    """The smallest run of two steps a phase."""
    tasks = {name: BundledTasks(name, count) for name, count in (("train", 4), ("validation", 2), ("test", 1))}
    limits = RolloutLimits(max_turns=1, max_new_tokens_per_turn=8, max_trajectory_tokens=200, rows=8)
    sizes = {"prompts_per_phase": 2, "prompts_per_step": 1, "rollouts_per_prompt": 2, "max_prompt_tokens": 600}
    policy = PolicyConfig(model=shallow_folder(), adapter="lora", lora_r=4, lora_alpha=8, dtype="float32")
    module = PACTModule(
        policy=policy, optimizer=OptimizerConfig(1e-3), max_tokens_per_forward=4096, anchor_probability=0.0
    )
    return module, RolloutDataModule(**tasks, **sizes, limits=limits)


def refusal(**flags):
    """The sentence of a fit that is refused; it must come before the policy is loaded."""
    module, data = pact()
    try:
        quiet_trainer(**({"max_epochs": 1} | flags)).fit(module, data)
    except ValueError as error:
        assert module.policy is None, "the policy was loaded"
        return str(error)
    raise AssertionError(f"{flags} is not refused")


# Flags that are refused, each with values to try; the first one's sentence is shown.
REFUSED_FLAGS = {
    "precision": [{"precision": value} for value in ("bf16-true", "bf16-mixed", "16-true", "64-true")],
    "accumulate_grad_batches": [{"accumulate_grad_batches": 2}],
    "gradient_clip_val": [{"gradient_clip_val": 1.0}],
    "gradient_clip_algorithm": [{"gradient_clip_algorithm": "value"}],
    "barebones": [
        {
            "barebones": True,
            **dict.fromkeys(
                ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "log_every_n_steps")
            ),
        }
    ],
    "overfit_batches": [{"overfit_batches": 1}, {"overfit_batches": 0.5}],
    "reload_dataloaders_every_n_epochs": [{"reload_dataloaders_every_n_epochs": 1}],
}

# Flags that work or have no effect.
FLAGS = {
    "accelerator": "`cpu`, `cuda`, `gpu`, `auto`.",
    "strategy": "`auto`, `ddp` and `ModelParallelStrategy` (FSDP2, full weights). `fsdp` and `deepspeed` are refused: "
    "they cannot make rollouts.",
    "devices": "Works; `data.prompts_per_step` must be a multiple of all processes.",
    "num_nodes": "Works, as `devices`.",
    "logger": "Any logger; the recipe reaches its configuration page. Without one, files go to the run's folder alone.",
    "callbacks": "See below.",
    "fast_dev_run": "Works: the rollouts of one step (or as many as it says), and one validation; saves nothing.",
    "max_epochs": "The number of phases. With -1, `max_steps` decides.",
    "min_epochs": "Works.",
    "max_steps": "Optimiser steps. The annealing reaches its end with whichever of `max_epochs` and `max_steps` does.",
    "min_steps": "Works.",
    "max_time": "Works: the current phase stops after its step; resume with `--ckpt_path last`.",
    "limit_train_batches": "Steps of a phase, as a number or a share; nothing is rolled out for the others.",
    "limit_val_batches": "0 or 1, since all tasks are one batch; a share between them is refused.",
    "limit_test_batches": "As `limit_val_batches`.",
    "limit_predict_batches": "As `limit_val_batches`.",
    "val_check_interval": "Works; a validation within a phase has its step in the names of its files.",
    "check_val_every_n_epoch": "Works, in phases.",
    "num_sanity_val_steps": "0 for none; any other number validates all tasks before training, which shows the start.",
    "log_every_n_steps": "Works; figures of a phase are logged once in any case.",
    "enable_checkpointing": "Works.",
    "enable_progress_bar": "Works.",
    "enable_model_summary": "Works.",
    "deterministic": "Works.",
    "benchmark": "Works.",
    "inference_mode": "Works.",
    "use_distributed_sampler": "No effect: the processes share every step's prompts.",
    "profiler": "Works.",
    "detect_anomaly": "Works, slowly.",
    "plugins": "Works; `BitsandbytesPrecision` is refused (`model.policy.adapter: qlora`), other precisions as "
    "`precision`. Checkpoints are written by the package unless a `CheckpointIO` is given.",
    "sync_batchnorm": "No effect: language models have none.",
    "default_root_dir": "Works.",
    "enable_autolog_hparams": "Works.",
    "model_registry": "Works, with `litmodels`.",
}

MONITOR = "val/answer_correct"
REFUSED_CALLBACKS = {
    "BackboneFinetuning": callbacks.BackboneFinetuning,
    "BaseFinetuning": callbacks.BackboneFinetuning,
    "BatchSizeFinder": callbacks.BatchSizeFinder,
    "EMAWeightAveraging": callbacks.EMAWeightAveraging,
    "GradientAccumulationScheduler": lambda: callbacks.GradientAccumulationScheduler({0: 2}),
    "LearningRateFinder": callbacks.LearningRateFinder,
    "ModelPruning": lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5),
    "SpikeDetection": callbacks.SpikeDetection,
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(1e-4),
    "WeightAveraging": callbacks.WeightAveraging,
}
CALLBACKS = {
    "BasePredictionWriter": "Works; `predict` writes trajectories by itself.",
    "Callback": "Your own: all hooks are called as in any fit.",
    "Checkpoint": "Base class.",
    "DeviceStatsMonitor": "Works.",
    "EarlyStopping": "Works; a metric that the fit does not log is refused before the policy is loaded.",
    "LambdaCallback": "Works.",
    "LearningRateMonitor": "Works; `train/learning_rate` is logged without it too.",
    "ModelCheckpoint": "Works: by phases, steps or a metric. Refused are `save_weights_only`, from which a fit could "
    "not resume, `train_time_interval`, with which Lightning saves nothing in manual optimisation, and metrics that "
    "the fit does not log.",
    "ModelSummary": "Works.",
    "OnExceptionCheckpoint": "Works; a run that stops saves itself without it.",
    "ProgressBar": "Base class.",
    "RichModelSummary": "Works.",
    "RichProgressBar": "Works.",
    "TQDMProgressBar": "Works.",
    "ThroughputMonitor": "Works with `batch_size_fn: len`; `perf/...` has tokens per second without it.",
    "Timer": "Works, as `max_time`.",
}


def fitting_callbacks(folder):
    """One of each callback that works, as far as they get along."""
    return [
        callbacks.DeviceStatsMonitor(cpu_stats=True),
        callbacks.EarlyStopping(MONITOR, patience=9, mode="max"),
        callbacks.LambdaCallback(on_train_end=lambda *_: (folder / "lambda").write_text("called")),
        callbacks.LearningRateMonitor(),
        callbacks.ModelCheckpoint(folder / "best", monitor=MONITOR, mode="max"),
        callbacks.ModelCheckpoint(folder / "steps", every_n_train_steps=1, save_top_k=-1),
        callbacks.OnExceptionCheckpoint(folder / "exception"),
        callbacks.RichModelSummary(),
        callbacks.RichProgressBar(),
        callbacks.ThroughputMonitor(batch_size_fn=len),
        callbacks.Timer(timedelta(hours=1)),
    ]


def all_flags():
    """Names of the Trainer's flags."""
    return set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}


def all_callbacks():
    """Names of Lightning's callbacks."""
    return {name for name in dir(callbacks) if inspect.isclass(getattr(callbacks, name)) and name[0].isupper()}


def page():
    """The page, with the sentences that refusals say."""
    lines = [
        "# Lightning's flags and callbacks",
        "",
        "What works for every flag of the Trainer and every callback of Lightning, and what is refused. A test tries",
        "them all and makes this page: `PYTHONPATH=tests python tests/lightning_habits.py`.",
        "",
        "## Flags of the Trainer",
        "",
        "| flag | what works |",
        "|---|---|",
    ]
    rows = dict(FLAGS) | {name: f"Refused: *{refusal(**tries[0])}*." for name, tries in REFUSED_FLAGS.items()}
    lines += [f"| `{name}` | {text} |" for name, text in sorted(rows.items())]
    lines += ["", "## Callbacks", "", "| callback | what works |", "|---|---|"]
    rows = dict(CALLBACKS)
    rows |= {name: f"Refused: *{refusal(callbacks=[make()])}*." for name, make in REFUSED_CALLBACKS.items()}
    lines += [f"| `{name}` | {text} |" for name, text in sorted(rows.items())]
    module, _ = pact()
    module.trainer = quiet_trainer()
    names = sorted(module.metric_names)
    lines += [
        "",
        "## Metrics to monitor",
        "",
        "What `EarlyStopping` and `ModelCheckpoint` can monitor in a fit of `PACTModule`; metrics of `model.metrics`",
        "are added as `val/...`. [Metrics](metrics.md) explains each.",
        "",
        ", ".join(f"`{name}`" for name in names) + ".",
        "",
        "## Options of LightningCLI",
        "",
        "`--optimizer` and `--lr_scheduler` are not there: the optimiser is `model.optimizer`. Options stand",
        "after the recipes (`-c`). `fit --print_config` prints the recipe with all defaults.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit()

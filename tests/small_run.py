"""A small fit with everything in it that could fail to repeat, and what disturbs it at a chosen moment."""

import os
import signal
from dataclasses import replace

import lightning.pytorch as pl
import pytest
from hand_made import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from shallow_policy import shallow_folder

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout import runner
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.store import StoredRollouts
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.training.sft_module import SFTModule
from pact_lightning.training.trace_datamodule import TraceDataModule
from pact_lightning.update.optimizer import OptimizerConfig

PHASES = 2


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    """Parts of four rollouts, so that a phase of eight has two; in force in every module that imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_ROWS_OF_A_PART", 1)
        yield


POLICY = PolicyConfig(
    model="bundled",
    adapter="lora",
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    dtype="float32",
    target_modules=["q_proj", "v_proj"],  # few: most of a small run's time is theirs
)
OPTIMIZER = OptimizerConfig(3e-4, schedule="cosine", schedule_steps=12)
LIMITS = RolloutLimits(max_turns=3, max_new_tokens_per_turn=40, max_trajectory_tokens=300, rows=4)
SHORT = RolloutLimits(max_turns=1, max_new_tokens_per_turn=12, max_trajectory_tokens=300, rows=4)


def short():
    """The run of a shallow policy, with rollouts of a few tokens; what there is to learn is the traces."""
    return pact(shallow(), SHORT)


def shallow():
    return replace(POLICY, model=shallow_folder())


def pact(policy=POLICY, limits=LIMITS):
    tasks = {"train": BundledTasks("train", 3, start=3), "validation": BundledTasks("validation", 2)}
    data = RolloutDataModule(
        **tasks, prompts_per_phase=4, prompts_per_step=2, rollouts_per_prompt=2, limits=limits, temperature=1.4
    )
    return PACTModule(policy=policy, optimizer=OPTIMIZER), data


def sft():
    tasks = {"train": BundledTasks("train", 5), "validation": BundledTasks("validation", 2)}
    return SFTModule(policy=POLICY, optimizer=OPTIMIZER), TraceDataModule(**tasks, batch_size=2, limits=LIMITS)


def trainer(folder, *callbacks, **checkpoints):
    """The Trainer of one start of a run in a folder."""
    checkpoints = {"save_last": True, "save_on_train_epoch_end": True} | checkpoints
    return quiet_trainer(
        max_epochs=PHASES,
        logger=[logger(folder, "run", "version_0") for logger in (CSVLogger, TensorBoardLogger)],
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(folder / "checkpoints", **checkpoints), *callbacks],
        num_sanity_val_steps=-1,
        default_root_dir=folder,
    )


def fit(folder, make, *callbacks, ckpt_path=None, **checkpoints):
    """One start of a run in a folder; ``ckpt_path`` may be a function of the Trainer."""
    if make in (pact, short):
        callbacks = (AnnealingCallback(), *callbacks)
    module, data = make()
    started = trainer(folder, *callbacks, **checkpoints)
    started.fit(module, data, ckpt_path=ckpt_path(started) if callable(ckpt_path) else ckpt_path)


class AfterStep(pl.Callback):
    """Sends a signal to the run while it is in a step."""

    def __init__(self, phase, step, number=signal.SIGTERM):
        self.at, self.number = (phase, step), number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), self.number)


class InRollouts(pl.Callback):
    """Sends a signal when so many rollouts of a phase or of a validation have ended."""

    def __init__(self, monkeypatch, what, count, number=signal.SIGTERM):
        append, seen = StoredRollouts.append, []

        def counting(stored, request, trajectory):
            append(stored, request, trajectory)
            seen.append(stored._log.path.name)
            if seen.count(f"{what}.jsonl") == count and seen[-1] == f"{what}.jsonl":
                os.kill(os.getpid(), number)

        monkeypatch.setattr(StoredRollouts, "append", counting)

"""A run that is told to stop, at every kind of moment, and goes on: bit for bit the undisturbed one."""

import os
import signal

import lightning.pytorch as pl
import pytest
from hand_made import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from soak import End

from pact_lightning import rollout_run
from pact_lightning.annealing import AnnealingCallback
from pact_lightning.callbacks.interruption import NAME
from pact_lightning.datamodule import RolloutDataModule
from pact_lightning.environments.bundled.tasks import BundledTasks
from pact_lightning.module import PACTModule
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy_module import OptimizerConfig
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout_store import StoredRollouts
from pact_lightning.sft_module import SFTModule
from pact_lightning.trace_datamodule import TraceDataModule

PHASES = 2
POLICY = PolicyConfig(model="bundled", adapter="lora", lora_r=4, lora_alpha=8, lora_dropout=0.1, dtype="float32")
OPTIMIZER = OptimizerConfig(3e-4, schedule="cosine", schedule_steps=12)
LIMITS = RolloutLimits(max_turns=3, max_new_tokens_per_turn=40, max_trajectory_tokens=300, rows=4)


def pact():
    tasks = {"train": BundledTasks("train", 3, start=3), "validation": BundledTasks("validation", 2)}
    data = RolloutDataModule(
        **tasks, prompts_per_phase=4, prompts_per_step=2, rollouts_per_prompt=2, limits=LIMITS, temperature=1.4
    )
    return PACTModule(policy=POLICY, optimizer=OPTIMIZER), data


def sft():
    tasks = {"train": BundledTasks("train", 5), "validation": BundledTasks("validation", 2)}
    return SFTModule(policy=POLICY, optimizer=OPTIMIZER), TraceDataModule(**tasks, batch_size=2, limits=LIMITS)


def fit(folder, make, *callbacks, resume=False, **checkpoints):
    """One start of a run in a folder."""
    checkpoints = {"save_last": True, "save_on_train_epoch_end": True} | checkpoints
    module, data = make()
    trainer = quiet_trainer(
        max_epochs=PHASES,
        logger=[logger(folder, "run", "version_0") for logger in (CSVLogger, TensorBoardLogger)],
        enable_checkpointing=True,
        callbacks=[
            AnnealingCallback(),
            ModelCheckpoint(folder / "checkpoints", **checkpoints),
            *callbacks,
        ]
        if make is pact
        else [ModelCheckpoint(folder / "checkpoints", **checkpoints), *callbacks],
        num_sanity_val_steps=-1,
    )
    trainer.fit(module, data, ckpt_path="last" if resume else None)


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    """Parts of four rollouts, so that a phase of eight has two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_run, "_ROWS_OF_A_PART", 1)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """How undisturbed runs end, by their kind."""
    ends = {}
    for make in (pact, sft):
        folder = tmp_path_factory.mktemp("undisturbed")
        fit(folder, make)
        assert not (folder / "checkpoints" / "rollouts").exists(), "what is kept for a resumption goes at the end"
        ends[make] = End.of(folder)
    assert any(float(row.get("train/rl_loss", 0)) for row in ends[pact].metrics), "there is something to tell apart"
    return ends


class AfterStep(pl.Callback):
    """Sends a signal to the run while it is in a step."""

    def __init__(self, phase, step, number=signal.SIGTERM):
        self.at, self.number = (phase, step), number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), self.number)


class InRollouts(pl.Callback):
    """Sends a signal when so many rollouts of a phase or of a validation have ended."""

    def __init__(self, monkeypatch, what, count):
        append, seen = StoredRollouts.append, []

        def counting(stored, request, trajectory):
            append(stored, request, trajectory)
            seen.append(stored._log.path.name)
            if seen.count(f"{what}.jsonl") == count and seen[-1] == f"{what}.jsonl":
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(StoredRollouts, "append", counting)


MOMENTS = {
    "after the first step of the run": (pact, lambda m: AfterStep(0, 0)),
    "after the first step of the last phase": (pact, lambda m: AfterStep(1, 0)),
    "after the last step of a phase": (pact, lambda m: AfterStep(0, 1)),
    "in the first part of the first rollouts": (pact, lambda m: InRollouts(m, "phase-0000", 2)),
    "in the second part of the last rollouts": (pact, lambda m: InRollouts(m, "phase-0001", 6)),
    "in a validation": (pact, lambda m: InRollouts(m, "validation-0001", 1)),
    "in the last validation": (pact, lambda m: InRollouts(m, "validation-0002", 1)),
    "after a step of supervised training": (sft, lambda m: AfterStep(1, 0)),
}


LIKE_ANOTHER = {
    "after the first step of the last phase",
    "in the second part of the last rollouts",
    "in a validation",
}
"""Moments that differ from another one by the phase alone."""


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in MOMENTS]
)
def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(undisturbed, tmp_path, monkeypatch, moment):
    make, interruption = MOMENTS[moment]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, make, interruption(monkeypatch))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "signals are given back"
    assert (tmp_path / "checkpoints" / NAME).exists()
    monkeypatch.undo()
    fit(tmp_path, make, resume=True)
    assert undisturbed[make].differences(End.of(tmp_path)) == []
    assert not (tmp_path / "checkpoints" / NAME).exists()

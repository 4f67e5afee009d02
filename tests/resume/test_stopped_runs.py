"""A run that cannot go on: one sentence, its state beside the checkpoints, and `last` finds it."""

import re

import lightning.pytorch as pl
import pytest
from cli_recipe import saved
from small_run import AfterStep, InRollouts, fit, pact, short

from pact_lightning.cli.main import main
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.resume.interruption import STOPPED
from pact_lightning.tasks.bundled.tools import BundledWorld


class Pays:
    """Pays NaN once it has paid so often."""

    paid = 0
    good = 0

    def __call__(self, trajectory, task):
        type(self).paid += 1
        return [float("nan") if self.paid > self.good else 1.0] * len(trajectory.turns)


class Ends(pl.Callback):
    """Lets every call find its world gone, from the start of a fit on: tasks are made by calls too."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def on_fit_start(self, trainer, pl_module):
        def gone(world, name, arguments):
            raise EnvironmentUnavailableError("the world has ended")

        self.monkeypatch.setattr(BundledWorld, "call", gone)


def command(folder, monkeypatch, good):
    monkeypatch.setattr(Pays, "paid", 0)
    monkeypatch.setattr(Pays, "good", good)
    changes = {"trainer.max_epochs": 2, "data.init_args.credit": {"reward": f"{__name__}.Pays"}}
    loggers = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder), "name": ""}}
    ]
    main(["fit", "-c", saved(folder, changes | {"trainer.logger": loggers}), "--ckpt_path", "last"])


@pytest.mark.parametrize(
    ("good", "what"), [(0, "The start of the first phase"), (4, "Everything up to the last finished phase")]
)
def test_a_reward_that_is_no_number_ends_in_one_sentence_and_last_goes_on(
    tmp_path, monkeypatch, capsys, caplog, good, what
):
    caplog.set_level("INFO", logger="lightning.pytorch")
    with pytest.raises(SystemExit) as stopped:
        command(tmp_path, monkeypatch, good)
    assert stopped.value.code == 1
    path = tmp_path / "run" / "checkpoints" / STOPPED
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: data.credit.reward '{__name__}.Pays' gave [nan")
    assert told.endswith(f"{what} is saved as {path}; resume with --ckpt_path last once it is mended")
    command(tmp_path, monkeypatch, 99)
    assert re.search(rf"resumed from {path} at phase {good // 4}", caplog.text)
    assert not path.exists(), "the run has ended"
    assert [folder.name for folder in tmp_path.glob("version_*")] == ["version_0"]
    assert len(list((tmp_path / "version_0" / "trajectories").glob("phase-*.jsonl"))) == 2


def test_without_a_folder_for_checkpoints_the_path_is_told(tmp_path, monkeypatch):
    module, data = pact()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        callbacks=[Ends(monkeypatch)],
        default_root_dir=tmp_path,
    )
    with pytest.raises(EnvironmentUnavailableError) as caught:
        trainer.fit(module, data)
    path = tmp_path / "checkpoints" / STOPPED
    assert path.exists()
    assert str(caught.value) == (
        f"the world has ended. The start of the first phase is saved as {path}; resume with --ckpt_path {path} once it "
        "is back"
    )


def test_before_the_first_phase_nothing_is_saved(tmp_path, monkeypatch):
    with pytest.raises(EnvironmentUnavailableError, match="Nothing had to be saved; run the command again once it is"):
        fit(tmp_path, pact, Ends(monkeypatch))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("whole", [True, False])
def test_a_resumed_run_says_why_finished_rollouts_are_made_again(tmp_path, monkeypatch, caplog, whole):
    caplog.set_level("INFO", logger="lightning.pytorch")
    with pytest.raises(SystemExit):
        fit(tmp_path, short, AfterStep(0, 0) if whole else InRollouts(monkeypatch, "phase-0000", 2))
    monkeypatch.undo()
    fit(tmp_path, short, ckpt_path="last")
    kept = "finished 8 of 8 rollouts; 8 are reused\n" if whole else "rollouts; 0 are reused (on a CPU whole parts"
    assert kept in caplog.text

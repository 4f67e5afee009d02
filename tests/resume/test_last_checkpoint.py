"""A run that Python starts again goes on from the newest whole checkpoint, whatever has become of the newest one."""

from datetime import datetime
from pathlib import Path

import lightning.pytorch as pl
import pytest
from small_run import PHASES, AfterStep, fit, short, trainer
from soak import End
from test_checkpoint_files import cut

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.resume.last_checkpoint import evaluated_checkpoint, last_checkpoint


def stopped(folder):
    """A run that was told to stop in its second phase; its newest checkpoints are not whole."""
    with pytest.raises(SystemExit):
        fit(folder, short, AfterStep(1, 0))
    for newest in ("last-interrupted.ckpt", "last.ckpt"):
        path = folder / "checkpoints" / newest
        path.write_bytes(cut(path.read_bytes()))


def test_a_torn_checkpoint_is_told_and_the_run_goes_on_from_the_one_before_it(tmp_path):
    fit(tmp_path / "undisturbed", short)
    folder = tmp_path / "stopped"
    stopped(folder)
    with pytest.warns(UserWarning, match=r"last-interrupted\.ckpt is truncated .*; the previous one is used"):
        found = last_checkpoint(trainer(folder))
    assert found == str(folder / "checkpoints" / "epoch=0-step=2.ckpt")
    fit(folder, short, ckpt_path=found)
    assert End.of(tmp_path / "undisturbed").differences(End.of(folder)) == []
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {name for name in names if name.startswith("last")} == {
        "last.ckpt",
        "last.ckpt.damaged",
        "last-interrupted.ckpt.damaged",
    }


def test_what_lightning_takes_for_the_last_one_is_refused_where_it_is_torn(tmp_path):
    stopped(tmp_path)
    with pytest.raises(
        ValueError, match=r"last.*\.ckpt is truncated .*ckpt_path=pact_lightning\.last_checkpoint\(trainer\)"
    ):
        fit(tmp_path, short, ckpt_path="last")


class Dated(pl.Callback):
    """A callback of a user's own that keeps an object in its checkpoints."""

    since = datetime(2026, 1, 1)

    def state_dict(self):
        return {"since": self.since}

    def load_state_dict(self, state_dict):
        self.found = state_dict["since"]


def test_a_run_whose_callback_keeps_an_object_goes_on_where_it_is_trusted_and_never_starts_anew(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, short, Dated(), AfterStep(0, 1))
    folder = tmp_path / "checkpoints"
    before = {path.name for path in folder.glob("*.ckpt")}
    with pytest.raises(TypeError, match=r"holds an object \(datetime\.datetime\)"):
        last_checkpoint(trainer(tmp_path))
    assert {path.name for path in folder.iterdir() if path.is_file()} == before
    module, data = short()
    with pytest.raises(TypeError, match=r"holds an object \(datetime\.datetime\)"):
        trainer(tmp_path).validate(module, data, ckpt_path=str(folder / "last-interrupted.ckpt"))
    again, started = Dated(), trainer(tmp_path)
    started.callbacks += [AnnealingCallback(), again]
    found = last_checkpoint(started, weights_only=False)
    assert Path(found).name == "last-interrupted.ckpt"
    started.fit(module, data, ckpt_path=found, weights_only=False)
    assert again.found == Dated.since
    assert started.current_epoch == PHASES


def test_an_evaluation_takes_the_newest_whole_checkpoint_and_changes_nothing(tmp_path):
    stopped(tmp_path)
    folder = tmp_path / "checkpoints"
    before = {path: path.read_bytes() for path in folder.glob("*.ckpt*")}
    evaluating = trainer(tmp_path)
    module, data = short()
    with pytest.raises(ValueError, match=r"last.*\.ckpt is truncated .*evaluated_checkpoint\(trainer\)"):
        evaluating.validate(module, data, ckpt_path="last")
    with pytest.warns(UserWarning, match=r"last.*\.ckpt is truncated .*; the previous one is used"):
        found = evaluated_checkpoint(evaluating)
    assert found == str(folder / "epoch=0-step=2.ckpt")
    evaluating.validate(module, data, ckpt_path=found)
    assert {path: path.read_bytes() for path in folder.glob("*.ckpt*")} == before


def test_an_evaluation_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no complete checkpoint in"):
        evaluated_checkpoint(trainer(tmp_path))


def test_without_a_checkpoint_the_run_starts_anew(tmp_path, caplog):
    fresh = trainer(tmp_path)
    caplog.set_level("INFO", logger="lightning.pytorch")
    assert last_checkpoint(fresh) is None
    assert f"started from the beginning: there is no checkpoint in {tmp_path / 'checkpoints'}" in caplog.text

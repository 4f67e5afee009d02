"""A run that Python starts again goes on from the newest whole checkpoint, whatever has become of the newest one."""

import pytest
from small_run import AfterStep, fit, pact, trainer
from soak import End
from test_checkpoint_files import cut

from pact_lightning.last_checkpoint import last_checkpoint


def stopped(folder):
    """A run that was told to stop in its second phase; its newest checkpoints are not whole."""
    with pytest.raises(SystemExit):
        fit(folder, pact, AfterStep(1, 0))
    for newest in ("last-interrupted.ckpt", "last.ckpt"):
        path = folder / "checkpoints" / newest
        path.write_bytes(cut(path.read_bytes()))


def test_a_torn_checkpoint_is_told_and_the_run_goes_on_from_the_one_before_it(tmp_path):
    fit(tmp_path / "undisturbed", pact)
    folder = tmp_path / "stopped"
    stopped(folder)
    with pytest.warns(UserWarning, match=r"last-interrupted\.ckpt is cut off .*; the one before it is used"):
        found = last_checkpoint(trainer(folder))
    assert found == str(folder / "checkpoints" / "epoch=0-step=2.ckpt")
    fit(folder, pact, ckpt_path=found)
    assert End.of(tmp_path / "undisturbed").differences(End.of(folder)) == []
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {name for name in names if name.startswith("last")} == {
        "last.ckpt",
        "last.ckpt.damaged",
        "last-interrupted.ckpt.damaged",
    }


def test_what_lightning_takes_for_the_last_one_is_refused_where_it_is_torn(tmp_path):
    stopped(tmp_path)
    with pytest.raises(ValueError, match=r"last.*\.ckpt is cut off .*ckpt_path=last_checkpoint\(trainer\)"):
        fit(tmp_path, pact, ckpt_path="last")


def test_without_a_checkpoint_the_run_starts_anew(tmp_path, caplog):
    fresh = trainer(tmp_path)
    caplog.set_level("INFO", logger="lightning.pytorch")
    assert last_checkpoint(fresh) is None
    assert f"started anew: there is no checkpoint in {tmp_path / 'checkpoints'}" in caplog.text

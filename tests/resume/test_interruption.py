"""A run that is told to stop, at every kind of moment, and goes on: bit for bit the undisturbed one."""

import signal

import pytest
from small_run import AfterStep, InRollouts, fit, pact, sft, short, small_parts  # noqa: F401  # in force by being here
from soak import End

from pact_lightning.resume.interruption import NAME


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """How undisturbed runs end, by their kind."""
    ends = {}
    for make in (pact, short, sft):
        folder = tmp_path_factory.mktemp("undisturbed")
        fit(folder, make)
        assert not (folder / "checkpoints" / "rollouts").exists(), "what is kept for a resumption goes at the end"
        ends[make] = End.of(folder)
    assert any(float(row.get("train/rl_loss", 0)) for row in ends[pact].metrics), "there is something to tell apart"
    return ends


MOMENTS = {
    "after the first step of the run": (pact, lambda m: AfterStep(0, 0)),
    "after the first step of the last phase": (pact, lambda m: AfterStep(1, 0)),
    "after the last step of a phase": (short, lambda m: AfterStep(0, 1)),
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
def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(undisturbed, tmp_path, monkeypatch, caplog, moment):
    make, interruption = MOMENTS[moment]
    caplog.set_level("INFO", logger="lightning.pytorch")
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, make, interruption(monkeypatch))
    assert "weights_only" not in caplog.text, "nobody has to know of a default of Lightning's"
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "signals are given back"
    assert (tmp_path / "checkpoints" / NAME).exists()
    monkeypatch.undo()
    fit(tmp_path, make, ckpt_path="last")
    assert undisturbed[make].differences(End.of(tmp_path)) == []
    assert not (tmp_path / "checkpoints" / NAME).exists()


@pytest.mark.parametrize("step", [(1, 1), *(pytest.param(s, marks=pytest.mark.slow) for s in ((0, 0), (0, 1), (1, 0)))])
def test_a_run_goes_on_from_the_checkpoint_that_lightning_saves_in_any_step(undisturbed, tmp_path, step):
    every = {"every_n_train_steps": 1, "save_top_k": -1, "save_last": False}
    with pytest.raises(SystemExit):
        fit(tmp_path, short, AfterStep(*step), **every)
    (tmp_path / "checkpoints" / NAME).unlink()
    phase, number = step
    (saved,) = (tmp_path / "checkpoints").glob(f"*step={2 * phase + number + 1}.ckpt")
    fit(tmp_path, short, ckpt_path=str(saved))
    assert undisturbed[short].differences(End.of(tmp_path)) == []


AGAIN = {
    "after a step of the next phase": lambda m: AfterStep(1, 0),
    "in the rollouts of the next phase": lambda m: InRollouts(m, "phase-0001", 2),
}


@pytest.mark.parametrize(
    ("moment", "killed"),
    [
        ("in the rollouts of the next phase", True),
        pytest.param("after a step of the next phase", False, marks=pytest.mark.slow),
        pytest.param("after a step of the next phase", True, marks=pytest.mark.slow),
        pytest.param("in the rollouts of the next phase", False, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_resumed_within_a_phase_is_interrupted_again(undisturbed, tmp_path, monkeypatch, moment, killed):
    """Lightning's counters of the present run are not those of one that began at the phase's start."""
    with pytest.raises(SystemExit):
        fit(tmp_path, short, AfterStep(0, 0))
    with pytest.raises(SystemExit):
        fit(tmp_path, short, AGAIN[moment](monkeypatch), ckpt_path="last")
    monkeypatch.undo()
    if killed:  # nothing of the moment itself is left, and the checkpoint of the finished phase is the newest
        (tmp_path / "checkpoints" / NAME).unlink()
    fit(tmp_path, short, ckpt_path="last")
    assert undisturbed[short].differences(End.of(tmp_path)) == []

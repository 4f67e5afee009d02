"""The annealing schedule in exact fractions, and the callback in a real Trainer."""

from fractions import Fraction
from math import floor

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.objectives.annealing import AnnealingSchedule, Supervision


def test_the_papers_schedule():
    levels = [AnnealingSchedule().at(step, 24).level for step in range(25)]
    assert levels == [4] * 5 + [3] * 5 + [2] * 5 + [1] * 5 + [0] * 5
    assert AnnealingSchedule().at(0, 24) == Supervision(4, 0.8)
    assert AnnealingSchedule().at(12, 24) == Supervision(2, 0.5)  # the paper's fig. 2: L2 at 0.5
    assert AnnealingSchedule().at(24, 24) == Supervision(0, 0.2)
    assert AnnealingSchedule().at(1000, 24) == Supervision(0, 0.2)


@given(st.integers(0, 10**18), st.integers(1, 10**18), st.integers(0, 4))
def test_the_level_is_exact_at_any_size(step, horizon, start):
    level = AnnealingSchedule(level_start=start).at(step, horizon).level
    assert level == max(0, start - floor(Fraction((start + 1) * step, horizon)))


@given(st.integers(1, 10**12), st.integers(0, 5))
def test_a_stage_begins_neither_early_nor_late(fifth, stage):
    schedule, horizon = AnnealingSchedule(), 5 * fifth
    assert schedule.at(stage * fifth, horizon).level == max(0, 4 - stage)
    if stage:
        assert schedule.at(stage * fifth - 1, horizon).level == 5 - stage


@given(st.integers(0, 300), st.integers(1, 200))
def test_the_scale_follows_the_formula_and_never_leaves_its_ends(step, horizon):
    scale = AnnealingSchedule().at(step, horizon).tool_call_scale
    exact = Fraction(8, 10) - Fraction(6, 10) * min(Fraction(step, horizon), Fraction(1))
    assert scale == pytest.approx(float(exact), abs=1e-15)
    assert 0.2 <= scale <= 0.8
    assert AnnealingSchedule().at(step + 1, horizon).tool_call_scale <= scale


@given(st.integers(0, 30))
def test_ablations_hold_one_side_fixed(step):
    both = AnnealingSchedule().at(step, 24)
    reasoning_fixed = AnnealingSchedule(anneal_reasoning=False).at(step, 24)
    assert reasoning_fixed == Supervision(4, both.tool_call_scale)
    scale_fixed = AnnealingSchedule(anneal_tool_calls=False).at(step, 24)
    assert scale_fixed == Supervision(both.level, 0.8)


def test_supervision_of_one_component_only():
    calls_only = AnnealingSchedule(level_start=0)
    assert {calls_only.at(step, 24).level for step in range(25)} == {0}
    reasoning_only = AnnealingSchedule(scale_start=0.0, scale_end=0.0)
    assert {reasoning_only.at(step, 24).tool_call_scale for step in range(25)} == {0.0}


def test_fewer_levels_make_longer_stages():
    assert [AnnealingSchedule(level_start=2).at(s, 6).level for s in range(7)] == [2, 2, 1, 1, 0, 0, 0]


def test_bad_arguments_are_named():
    for bad in ({"level_start": 5}, {"level_start": -1}):
        with pytest.raises(ValueError, match="level_start must be a level from 0 to 4"):
            AnnealingSchedule(**bad)
    for bad in ({"scale_start": -0.1}, {"scale_end": float("nan")}, {"scale_end": float("inf")}):
        with pytest.raises(ValueError, match=r"scale_\w+ must be finite and >= 0"):
            AnnealingSchedule(**bad)
    with pytest.raises(ValueError, match="step >= 0 and horizon >= 1, not step=-1"):
        AnnealingSchedule().at(-1, 10)
    with pytest.raises(ValueError, match="horizon=0"):
        AnnealingSchedule().at(0, 0)
    with pytest.raises(ValueError, match="level must be"):
        Supervision(5, 0.5)
    with pytest.raises(ValueError, match="horizon is a number of epochs"):
        AnnealingCallback(horizon=0)


class Recorder(pl.LightningModule):
    """Records the supervision that is in force at each training step, and what was logged by then."""

    def __init__(self, supervision=None):
        super().__init__()
        if supervision is not None:
            self.supervision = supervision
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(self.supervision)
        return self.weight * batch.mean()

    def on_train_epoch_end(self):
        metrics = self.trainer.callback_metrics
        assert metrics["anneal/level"].item() == self.supervision.level
        assert metrics["anneal/tool_call_scale"].item() == pytest.approx(self.supervision.tool_call_scale)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, callback, tmp_path, *, max_epochs, ckpt_path=None, max_steps=-1):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        max_steps=max_steps,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(torch.ones(2), batch_size=1), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore")
class TestCallback:
    def test_each_epoch_has_its_supervision(self, tmp_path):
        module = Recorder(Supervision(0, 0.0))
        fit(module, AnnealingCallback(), tmp_path, max_epochs=5)
        expected = [AnnealingSchedule().at(epoch, 5) for epoch in range(5) for _ in range(2)]
        assert module.seen == expected
        assert [supervision.level for supervision in module.seen[::2]] == [4, 3, 2, 1, 0]

    def test_a_resumed_run_goes_on_where_it_was(self, tmp_path):
        callback = AnnealingCallback(horizon=5)
        fit(Recorder(Supervision(0, 0.0)), callback, tmp_path, max_epochs=3).save_checkpoint(tmp_path / "last.ckpt")
        resumed = Recorder(Supervision(0, 0.0))
        fit(resumed, AnnealingCallback(horizon=5), tmp_path, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
        assert [supervision.level for supervision in resumed.seen] == [1, 1, 0, 0]

    def test_its_arguments_reach_the_schedule(self):
        callback = AnnealingCallback(
            scale_start=0.7, scale_end=0.1, level_start=3, anneal_reasoning=False, anneal_tool_calls=False
        )
        assert callback.schedule == AnnealingSchedule(0.7, 0.1, 3, False, False)

    def test_it_can_be_configured_from_a_file(self):
        parser = ArgumentParser()
        parser.add_subclass_arguments(pl.Callback, "callback")
        config = {"class_path": "pact_lightning.AnnealingCallback", "init_args": {"horizon": 7}}
        callback = parser.instantiate(parser.parse_object({"callback": config})).callback
        assert (callback.horizon, callback.schedule) == (7, AnnealingSchedule())

    def test_a_module_without_supervision_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="Recorder has none"):
            fit(Recorder(), AnnealingCallback(), tmp_path, max_epochs=1)

    def test_an_endless_run_needs_a_horizon(self, tmp_path):
        module = Recorder(Supervision(0, 0.0))
        with pytest.raises(ValueError, match="AnnealingCallback needs a horizon"):
            fit(module, AnnealingCallback(), tmp_path, max_epochs=-1)
        assert module.seen == []
        fit(module, AnnealingCallback(horizon=10), tmp_path, max_epochs=-1, max_steps=2)
        assert module.seen[0] == Supervision(4, 0.8)

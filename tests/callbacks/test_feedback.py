"""Supervision by feedback: it falls with success, and a resumed run has the strength of an uninterrupted one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import PHASES, AfterStep, fit, pact, trainer

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.callbacks.feedback import FeedbackCallback
from pact_lightning.credit.success import succeeded
from pact_lightning.objectives.annealing import Supervision
from pact_lightning.objectives.feedback import FeedbackSchedule
from pact_lightning.resume.last_checkpoint import last_checkpoint

SHARES = st.floats(0.0, 1.0)


@given(SHARES, SHARES, SHARES)
def test_more_success_never_means_more_supervision(strength, success, other):
    schedule = FeedbackSchedule()
    low, high = sorted((success, other))
    after_low, after_high = schedule.after(strength, low), schedule.after(strength, high)
    assert 0.0 <= after_high <= after_low <= 1.0
    weak, strong = schedule.at(after_high), schedule.at(after_low)
    assert weak.level <= strong.level
    assert weak.tool_call_scale <= strong.tool_call_scale
    assert schedule.after(strength, 0.5) == strength, "at the target nothing changes"


def test_the_ends_are_those_of_the_fixed_schedule():
    assert FeedbackSchedule().at(1.0) == Supervision(4, 0.8)
    assert FeedbackSchedule().at(0.0) == Supervision(0, 0.2)
    assert FeedbackSchedule(rate=2.0).after(0.5, 0.6) == pytest.approx(0.3)


def test_values_out_of_range_are_refused():
    for wrong in ({"target": 1.0}, {"rate": 0.0}, {"level_start": 5}, {"start": 1.5}):
        with pytest.raises(ValueError, match=r"feedback needs|level|strength from 0 to 1"):
            FeedbackCallback(**wrong)


class Seen(FeedbackCallback):
    """Keeps what a run has counted and set."""

    def __init__(self):
        super().__init__(rate=0.3)
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        mine = [succeeded(trajectory, group.task) for group in batch for trajectory in group.trajectories]
        self.seen.append((trainer.current_epoch, batch_idx, self.strength, sum(mine), len(mine)))


def run(folder, callback, *others, resume=False):
    module, data = pact()
    started = trainer(folder, callback, *others)
    started.fit(module, data, ckpt_path=last_checkpoint(started) if resume else None)


def test_a_run_interrupted_within_a_phase_ends_with_the_strength_of_a_whole_one(tmp_path):
    whole, first, second = Seen(), Seen(), Seen()
    run(tmp_path / "whole", whole)
    solved = sum(entry[3] for entry in whole.seen if entry[0] == 0)
    rolled_out = sum(entry[4] for entry in whole.seen if entry[0] == 0)
    expected = FeedbackSchedule(rate=0.3).after(1.0, solved / rolled_out)
    assert {entry[2] for entry in whole.seen if entry[0] == 1} == {expected}
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", first, AfterStep(0, 0))
    run(tmp_path / "parts", second, resume=True)
    assert first.seen + second.seen == whole.seen
    assert second.state_dict() == whole.state_dict()
    assert len(whole.seen) == 2 * PHASES


def test_two_schedules_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep only one of them"):
        fit(tmp_path, pact, FeedbackCallback())
    assert AnnealingCallback().horizon is None

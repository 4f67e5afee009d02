"""The collapse monitor: which figures are signs, when it warns, and what it remembers."""

import lightning.pytorch as pl
import pytest
from hand_made import FULL, STILL, Batches, RecordingModule, bundled_renderer, hand_made_group, quiet_trainer

from pact_lightning.callbacks.collapse import CollapseMonitor
from pact_lightning.metrics.rollout_figures import sampling_counts, sampling_signs

START = {
    "rollout/no_call": 0.1,
    "rollout/malformed_call": 0.0,
    "rollout/control_tokens": 0.1,
    "rollout/entropy": 0.5,
}
RENDERER = bundled_renderer()


@pytest.mark.parametrize(
    ("figure", "value", "what"),
    [
        ("rollout/no_call", 0.6, "60% of the rollouts call no tool (10% in the first phase)"),
        ("rollout/malformed_call", 0.5, "50% of the rollouts hold a malformed call"),
        ("rollout/control_tokens", 0.21, "21% of the sampled tokens are control tokens"),
        ("rollout/entropy", 0.04, "has fallen to 0.04 nats a token (0.5 in the first phase)"),
        ("rollout/entropy", 1.6, "has risen to 1.6 nats a token"),
    ],
)
def test_a_sign_is_told_once_with_the_phase_it_began_in(figure, value, what):
    watch = CollapseMonitor()
    assert watch.warnings_of(0, START) == []
    assert watch.warnings_of(1, START | {figure: value}) == []
    (warning,) = watch.warnings_of(2, START | {figure: value})
    assert what in warning
    assert "since phase 1 (now: phase 2)" in warning
    assert watch.warnings_of(3, START | {figure: value}) == []


def test_one_bad_phase_is_no_collapse():
    watch = CollapseMonitor()
    bad = START | {"rollout/no_call": 0.9}
    for phase, figures in enumerate([START, bad, START, bad, START]):
        assert watch.warnings_of(phase, figures) == []


def test_a_policy_that_starts_without_calls_has_not_collapsed():
    watch = CollapseMonitor(patience=1)
    for phase in range(3):
        assert watch.warnings_of(phase, START | {"rollout/no_call": 1.0}) == []


def test_figures_that_are_not_there_are_not_judged():
    watch = CollapseMonitor(patience=1)
    assert watch.warnings_of(0, {}) == watch.warnings_of(1, {"val/no_call": 1.0}) == []


def test_a_resumed_watch_goes_on_where_it_was():
    bad = START | {"rollout/entropy": 0.0}
    watch = CollapseMonitor()
    watch.warnings_of(0, START)
    watch.warnings_of(1, bad)
    resumed = CollapseMonitor()
    resumed.load_state_dict(watch.state_dict())
    assert resumed.warnings_of(2, bad) == watch.warnings_of(2, bad) != []
    assert resumed.warnings_of(3, bad) == []


class Collapsing(RecordingModule):
    """Logs the figures of a policy that stops to call tools after its first phase."""

    def training_step(self, batch, batch_idx):
        figures = START | {"rollout/no_call": 0.1 if self.current_epoch == 0 else 0.8}
        self.log_dict(figures, on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx)


def collapsing():
    module = Collapsing(policy=FULL, optimizer=STILL)
    module.configure_model()
    return module


def test_the_module_brings_its_monitor_and_ones_own_takes_its_place():
    module = collapsing()
    batches = [[hand_made_group(RENDERER)]]
    module.prepare_phase(batches[0], optimizer_steps=1)
    trainer = quiet_trainer(max_epochs=3)
    with pytest.warns(UserWarning, match=r"80% of the rollouts call no tool .* since phase 1 \(now: phase 2\)"):
        trainer.fit(module, Batches(batches))
    own = CollapseMonitor(patience=3)
    trainer = quiet_trainer(max_epochs=1, callbacks=[own])
    trainer.fit(collapsing(), Batches(batches))
    assert [callback for callback in trainer.callbacks if isinstance(callback, CollapseMonitor)] == [own]


def test_patience_counts_phases():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        CollapseMonitor(patience=0)


def test_the_signs_come_from_the_sampled_tokens_alone():
    group = hand_made_group(RENDERER)
    tokens = [int(token) for rollout in group.trajectories for token in rollout.ids()[rollout.policy_mask()]]
    for rollout in group.trajectories:
        rollout.sampled_logps = [-0.5] * int(rollout.policy_mask().sum())
    found = sampling_signs(sampling_counts([group], RENDERER))
    names = RENDERER.codec.tokenizer.all_special_tokens
    added = {index for index, token in RENDERER.codec.tokenizer.added_tokens_decoder.items()}
    assert names
    assert found == {
        "entropy": pytest.approx(0.5),
        "control_tokens": pytest.approx(sum(token in added for token in tokens) / len(tokens)),
        "empty": 0.0,
    }
    assert 0 < found["control_tokens"] < 1
    assert sampling_signs(sampling_counts([], RENDERER)) == {}


def test_the_monitor_is_a_callback_whose_state_is_saved():
    monitor = CollapseMonitor()
    monitor.warnings_of(0, START)
    assert isinstance(monitor, pl.Callback)
    assert monitor.state_dict() == {"start": START, "since": {}, "warned": []}

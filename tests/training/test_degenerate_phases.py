"""Phases at the edge: one rollout per prompt, one-token turns, no tools, no variance. All of them take their steps."""

import math
from dataclasses import replace

import pytest
import torch
from hand_made import (
    FULL,
    STILL,
    RecordingModule,
    bundled_renderer,
    gradients,
    hand_made_group,
    prepared,
    quiet_trainer,
)

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.samplers.base import TurnOutput
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.rollout_datamodule import RolloutDataModule

RENDERER = bundled_renderer()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs leave their trajectories where they are started."""
    monkeypatch.chdir(tmp_path)


class NoTools:
    """Bundled tasks without their tools, and without what names one."""

    def load(self):
        return [
            replace(
                task,
                prompt=replace(task.prompt, tools=()),
                reference=replace(task.reference, calls=(), sub_answers=()),
                trace=None,
            )
            for task in BundledTasks("train", 2).load()
        ]


def fit(tasks, rollouts, module=None, **limits):
    module = module or RecordingModule(policy=FULL, optimizer=STILL, anchor_probability=0.0)
    sizes = {"max_turns": 2, "max_new_tokens_per_turn": 12, "max_trajectory_tokens": 200} | limits
    data = RolloutDataModule(
        train=tasks,
        prompts_per_phase=2,
        prompts_per_step=1,
        rollouts_per_prompt=rollouts,
        limits=RolloutLimits(**sizes),
    )
    quiet_trainer(max_epochs=1).fit(module, data)
    return module


def logged(module):
    """Without the sampler's mismatch, which is NaN in steps that do not measure it."""
    found = {name: value for entry in module.logged for name, value in entry.items()}
    return {name: value for name, value in found.items() if not name.startswith("mismatch/")}


def assert_finite(module, steps=2):
    assert module.global_step == steps
    for gradients_of_step in module.recorded:
        assert all(bool(gradient.isfinite().all()) for gradient in gradients_of_step.values())
    assert all(map(math.isfinite, logged(module).values()))


def test_one_rollout_per_prompt():
    with pytest.warns(UserWarning, match=r"each has a single rollout.*rollouts_per_prompt to at least 2"):
        module = fit(BundledTasks("train", 2), rollouts=1)
    assert_finite(module)
    found = logged(module)
    assert found["train/single_rollout"] == found["rollout/single_rollout"] == 1.0
    assert found["train/zero_variance"] == found["train/rl_loss"] == found["train/kl"] == 0.0


@pytest.mark.parametrize("tokens", [1, 2])
def test_turns_of_one_token(tokens):
    assert_finite(fit(BundledTasks("train", 2), rollouts=3, max_new_tokens_per_turn=tokens))


def test_tasks_without_tools_and_traces():
    module = fit(NoTools(), rollouts=2)
    assert_finite(module)
    assert logged(module)["anchor/no_trace"] == 1.0


class Silent(RecordingModule):
    """A policy that ends every turn at once."""

    def sampler(self, sampling, prefill_tokens):
        return _Lent(_SilentSampler(self.renderer.end_of_turn))


class _Lent:
    def __init__(self, sampler):
        self.sampler = sampler

    def __enter__(self):
        return self.sampler

    def __exit__(self, *error):
        return None


class _SilentSampler:
    def __init__(self, end):
        self.end = end
        self.ended = []

    def submit(self, requests):
        self.ended += [TurnOutput(request.row, [self.end], [-0.1], finished=True) for request in requests]

    def step(self):
        ended, self.ended = self.ended, []
        return ended

    def release(self, row):
        pass


def test_empty_rollouts_are_counted_and_their_groups_learn_from_the_trace_alone():
    module = Silent(policy=FULL, optimizer=STILL, anchor_probability=0.0)
    with pytest.warns(UserWarning, match="all rollouts of each prompt scored the same"):
        fit(BundledTasks("train", 2), rollouts=3, module=module)
    assert_finite(module)
    found = logged(module)
    assert found["rollout/empty"] == found["train/zero_variance"] == found["rollout/control_tokens"] == 1.0
    assert found["train/rl_loss"] == 0.0
    assert found["train/sft_loss"] > 0.0


def test_a_step_to_which_nothing_contributes_changes_nothing():
    module = prepared(FULL, anchor_probability=1.0)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    group = hand_made_group(RENDERER)
    flat = make_group(group.task, [group.trajectories[0], replace(group.trajectories[0])], CreditConfig())
    assert flat.zero_variance
    module.prepare_phase([flat], optimizer_steps=1)
    assert gradients(module, flat) == {}
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert [entry["train/gradient_norm"] for entry in module.logged if "train/gradient_norm" in entry] == [0.0]

"""Environments that cannot be started: their rollouts are counted and left out, and the run goes on."""

import re
from dataclasses import replace

import lightning.pytorch as pl
import pytest
from hand_made import LORA, gradients, hand_made_group, prepared
from plain_pact import RENDERER, Plain

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.bundled.tools import BundledWorld
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.prompt import EnvironmentSpec


class OftenClosed(BundledWorld):
    """A world that opens for some tasks only, and cannot be closed where it opens for none."""

    made = 0
    closed = 0

    def __init__(self, split, index, open_to):
        super().__init__(split, index)
        self._open = index in open_to
        self._stuck = not open_to
        type(self).made += 1

    def close(self):
        type(self).closed += 1
        if self._stuck:
            raise OSError("the door is stuck")

    def reset(self, task, seed):
        if not self._open:
            raise ConnectionError("closed today")
        super().reset(task, seed)


class OftenSilent(BundledWorld):
    """A world behind a server that answers for some tasks only."""

    def __init__(self, split, index, open_to):
        super().__init__(split, index)
        self._open = index in open_to

    def call(self, name, arguments):
        if not self._open:
            raise ConnectionResetError("the line is dead")
        return super().call(name, arguments)


class Raises(BundledWorld):
    """A world whose tools raise, or answer what is no result, but for some tasks."""

    def __init__(self, split, index, open_to):
        super().__init__(split, index)
        self._open, self._worded = index in open_to, -1 in open_to

    def call(self, name, arguments):
        if self._open:
            return super().call(name, arguments)
        if self._worded:
            return "a bare text"
        raise RuntimeError("a slip of the pen")


class SomeTasks:
    def __init__(self, *open_to, world="OftenClosed"):
        self.open_to = open_to
        self.world = world

    def load(self):
        return [self._moved(task) for task in BundledTasks("train", 4).load()]

    def _moved(self, task):
        arguments = dict(task.prompt.environment.init_args) | {"open_to": self.open_to}
        spec = EnvironmentSpec(f"{__name__}.{self.world}", arguments)
        return replace(task, prompt=replace(task.prompt, environment=spec))


class Recording(PACTModule):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.rollout_metrics = {}

    def log_phase(self, groups, stats, ahead=None):
        super().log_phase(groups, stats, ahead)
        self.rollout_metrics = dict(self._phase_metrics)


def fit(tmp_path, *open_to, world="OftenClosed", phases=1, **limits):
    module = Recording(policy=LORA, anchor_probability=0.5)
    data = RolloutDataModule(
        train=SomeTasks(*open_to, world=world),
        prompts_per_phase=4,
        prompts_per_step=1,
        rollouts_per_prompt=2,
        limits=RolloutLimits(**({"max_new_tokens_per_turn": 16, "max_trajectory_tokens": 64} | limits)),
        max_prompt_tokens=400,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=phases,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    return module, trainer


def test_a_fit_goes_on_without_the_rollouts_that_failed(tmp_path):
    with pytest.warns(UserWarning, match=r"6 of 8 rollouts of this phase were left out .* closed today"):
        module, trainer = fit(tmp_path, 2)
    assert trainer.global_step == 4
    assert module.rollout_metrics["rollout/stop_environment_failed"] == 0.75
    lines = (tmp_path / "trajectories" / "phase-0000.jsonl").read_text().splitlines()
    assert sum("closed today" in line for line in lines) == 6
    assert len(lines) == 8


def test_every_environment_that_is_made_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(OftenClosed, "made", 0)
    monkeypatch.setattr(OftenClosed, "closed", 0)
    fit(tmp_path, 0, 1, 2, 3)
    assert (OftenClosed.made, OftenClosed.closed) == (4 + 8, 4 + 8), "one a task to be tried, one a rollout"


@pytest.mark.filterwarnings("error:close")
def test_an_environment_that_cannot_be_closed_is_told_before_the_policy_is_loaded(tmp_path):
    with pytest.raises(UserWarning, match=r"close\(\) of the environment .*OftenClosed failed: OSError: the door"):
        fit(tmp_path)


def test_a_phase_without_any_environment_stops_the_run_and_says_why(tmp_path):
    with pytest.raises(
        RuntimeError,
        match=r"no environment could be started in phase-0000 \(4 tasks\).*closed today",
    ):
        fit(tmp_path)


CALLING = {"max_turns": 2, "max_new_tokens_per_turn": 96, "max_trajectory_tokens": 400}


def test_calls_that_nobody_answers_are_counted_in_every_phase_and_told_once(tmp_path, recwarn):
    module, trainer = fit(tmp_path, 0, 2, world="OftenSilent", phases=2, **CALLING)
    assert trainer.global_step == 8
    told = [str(warning.message) for warning in recwarn if "got no answer" in str(warning.message)]
    assert len(told) == 1
    assert re.search(r"\d+ of \d+ tool calls got no answer in phase 0, such as in task train-[13]; look", told[0])
    phases = [(tmp_path / "trajectories" / f"phase-000{phase}.jsonl").read_text() for phase in range(2)]
    assert module.rollout_metrics["rollout/unanswered_calls"] == phases[1].count("the line is dead") > 0
    assert "the line is dead" in phases[0]


@pytest.mark.parametrize(
    ("open_to", "told"), [((), "RuntimeError: a slip of the pen"), ((-1,), "TypeError: .* with a text, not a str")]
)
def test_calls_that_all_raise_are_told_once_with_the_first_and_the_run_goes_on(tmp_path, recwarn, open_to, told):
    _, trainer = fit(tmp_path, *open_to, world="Raises", phases=2, **CALLING)
    assert trainer.global_step == 8
    (warning,) = [str(found.message) for found in recwarn if "exception" in str(found.message)]
    assert re.search(rf"all \d+ tool calls of phase 0 raised .* of task train-\d: The tool failed: {told}", warning)


def test_where_one_call_succeeds_no_exception_is_told(tmp_path, recwarn):
    fit(tmp_path, 0, 2, world="Raises", **CALLING)
    assert not [found for found in recwarn if "exception" in str(found.message)]
    assert "a slip of the pen" in (tmp_path / "trajectories" / "phase-0000.jsonl").read_text()


def test_where_nobody_answers_the_run_stops_and_says_why(tmp_path):
    with pytest.raises(EnvironmentUnavailableError, match=r"no tool call was answered in phase-0000.*line is dead"):
        fit(tmp_path, world="OftenSilent", **CALLING)


@pytest.mark.parametrize("zero_variance", ["drop", "keep"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_trace_is_imitated_where_no_rollout_is_left_or_one_that_cannot_be_compared(left, zero_variance):
    module = prepared(LORA, 0.02, anchor_probability=0.0, zero_variance=zero_variance)
    whole = hand_made_group(RENDERER)
    plain = Plain(module)
    expected = plain.gradient(0.1 * plain.sft(whole))
    failed = [replace(trajectory, segments=[]) for trajectory in whole.trajectories[left:]]
    group = make_group(whole.task, [*whole.trajectories[:left], *failed], CreditConfig())
    assert len(group.failed) == 3 - left
    module.prepare_phase([group], optimizer_steps=2)
    found = gradients(module, group)
    assert found.keys() == expected.keys()
    assert module.logged[0]["train/single_rollout"] == left
    for name, gradient in expected.items():
        assert gradient.abs().max() == 0 or (found[name] - gradient).abs().max() < 1e-5 * gradient.abs().max() + 1e-7


def test_a_reward_of_the_environment_needs_an_environment_that_gives_one(tmp_path):
    module = PACTModule(policy=LORA)
    data = RolloutDataModule(train=SomeTasks(0), credit=CreditConfig(reward="environment"))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"OftenClosed has no method reward\(\)"):
        trainer.fit(module, data)
    assert module.policy is None, "told before the policy is loaded"

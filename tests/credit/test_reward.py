"""Rewards by name and by import path, and what an environment itself gives."""

import pytest
from rollout_player import Bench, bench_prompt, log, play_one

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.credit.reward import REWARDS, RewardError, make_reward
from pact_lightning.credit.rewards import outcome_reward, turn_rewards
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.types.task import Reference, Task

CALLS = ({"name": "log", "arguments": {"what": "x"}}, {"name": "log", "arguments": {"what": "y"}})


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


class Paying(Bench):
    """Pays what it is told to, and remembers being closed."""

    closed = 0

    def __init__(self, pay=0.0):
        super().__init__()
        self.pay = pay

    def reward(self):
        if isinstance(self.pay, str):
            raise RuntimeError(self.pay)
        return self.pay + len(self.seen)

    def close(self):
        type(self).closed += 1


def count_turns(trajectory, task, *, each=1.0):
    return [each] * len(trajectory.turns)


class CountTurns:
    def __init__(self, each):
        self.each = each

    def __call__(self, trajectory, task):
        return [self.each] * len(trajectory.turns)


def too_few(trajectory, task):
    return []


def endless(trajectory, task):
    return [float("nan")] * len(trajectory.turns)


NOT_A_REWARD = 3


def rollout_of(renderer, *turns, environment="Bench", **arguments):
    prompt = bench_prompt(environment=environment, **arguments)
    rollout, stats = play_one(renderer, *turns, prompt=prompt)
    return Task(prompt, Reference("done", CALLS)), rollout, stats


def paid(renderer, pay):
    prompt = bench_prompt(environment="Paying", pay=pay)
    spec = type(prompt.environment)(f"{__name__}.Paying", {"pay": pay})
    prompt = type(prompt)(prompt.id, prompt.messages, prompt.tools, spec)
    rollout, stats = play_one(renderer, log("x"), "done", prompt=prompt)
    return Task(prompt, Reference("done", CALLS)), rollout, stats


def test_names_are_the_pure_functions(renderer):
    task, rollout, _ = rollout_of(renderer, log("x"), log("z"), "done")
    calls = [turn.calls for turn in rollout.turns]
    assert make_reward("matchtir")(rollout, task) == turn_rewards(calls, CALLS, "done", "done", malformed=[0, 0, 0])
    penalised = turn_rewards(calls, CALLS, "done", "done", malformed=[0, 0, 0], method="greedy", unmatched_penalty=0.5)
    assert make_reward("matchtir", matching="greedy", unmatched_penalty=0.5)(rollout, task) == penalised
    assert make_reward("outcome")(rollout, task) == outcome_reward(3, "done", "done") == [0.0, 0.0, 1.0]


def test_a_reward_of_one_s_own(renderer):
    task, rollout, _ = rollout_of(renderer, log("x"), "done")
    assert make_reward(f"{__name__}.count_turns")(rollout, task) == [1.0, 1.0]
    assert make_reward(f"{__name__}.count_turns", arguments={"each": 2})(rollout, task) == [2.0, 2.0]
    assert make_reward(f"{__name__}.CountTurns", arguments={"each": 3})(rollout, task) == [3.0, 3.0]
    group = make_group(task, [rollout], CreditConfig(reward=f"{__name__}.CountTurns", reward_args={"each": 3}))
    assert group.turn_rewards == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("matchtr", ValueError, f"use one of {', '.join(REWARDS)}, or the import path"),
        ("no.such.reward", ImportError, "'no.such.reward' cannot be imported"),
        (".ours", ImportError, "the reward '.ours' cannot be imported: it has an empty part"),
        (f"{__name__}.nothing", ImportError, "cannot be imported"),
        (f"{__name__}.NOT_A_REWARD", ValueError, "must be a function"),
    ],
)
def test_a_reward_that_is_none_is_told_when_the_recipe_is_read(name, error, says):
    with pytest.raises(error, match=says):
        CreditConfig(reward=name)


def a_number(trajectory, task):
    return 1.0


def broken(trajectory, task):
    return task.nonsense


def lazily_broken(trajectory, task):
    yield task.nonsense


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError


def wordless(trajectory, task):
    raise MuteError


def exits(trajectory, task):
    raise SystemExit(3)


@pytest.mark.parametrize(("name", "says"), [("wordless", "MuteError"), ("exits", "SystemExit: 3")])
def test_whatever_a_reward_raises_is_told(renderer, name, says):
    task, rollout, _ = rollout_of(renderer, log("x"), "done")
    with pytest.raises(RewardError, match=rf"failed on a rollout of task bench-0: {says} \(test_reward.py, line"):
        make_reward(f"{__name__}.{name}")(rollout, task)


@pytest.mark.parametrize("name", ["broken", "lazily_broken"])
def test_a_reward_that_fails_is_told_with_its_place(renderer, name):
    task, rollout, _ = rollout_of(renderer, log("x"), "done")
    says = r".*has no attribute 'nonsense' \(test_reward.py, line \d+\)"
    with pytest.raises(RewardError, match=f"reward .*{name}.* failed on a rollout of task bench-0: {says}"):
        make_reward(f"{__name__}.{name}")(rollout, task)


def nothing_at_all(trajectory, task):
    return None


def too_large(trajectory, task):
    return [1e300] * len(trajectory.turns)


def words(trajectory, task):
    return ["good", "bad"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("too_few", r"\[\]"),
        ("endless", r"\[nan, nan\]"),
        ("a_number", "1.0"),
        ("too_large", r"\[1e\+300, 1e\+300\]"),
        ("nothing_at_all", "None"),
        ("words", r"\['good', 'bad'\]"),
    ],
)
def test_a_reward_must_give_one_finite_number_per_turn(renderer, name, given):
    task, rollout, _ = rollout_of(renderer, log("x"), "done")
    with pytest.raises(
        RewardError, match=f"{name}' gave {given} for .* 2 turns .* must return a list of one finite number per turn"
    ):
        make_reward(f"{__name__}.{name}")(rollout, task)


def test_the_environment_s_own_reward_is_the_last_turn_s(renderer):
    before = Paying.closed
    task, rollout, stats = paid(renderer, 0.25)
    assert rollout.environment_reward == 1.25
    assert make_reward("environment")(rollout, task) == [0.0, 1.25]
    assert (stats.environment_failures, Paying.closed) == (0, before + 1)


@pytest.mark.parametrize("pay", ["no idea", float("inf")])
def test_an_environment_that_fails_afterwards_is_counted(renderer, pay, caplog):
    before = Paying.closed
    task, rollout, stats = paid(renderer, pay)
    assert rollout.environment_reward is None
    assert make_reward("environment")(rollout, task) == [0.0, 0.0]
    assert (stats.environment_failures, Paying.closed) == (1, before + 1)
    assert f"task {task.id} failed after its rollout" in caplog.text


def test_an_environment_without_a_reward_gives_none(renderer):
    _, rollout, stats = rollout_of(renderer, "done")
    assert (rollout.environment_reward, stats.environment_failures) == (None, 0)

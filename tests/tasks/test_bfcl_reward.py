"""The reward ``bfcl``: worked out by hand on small scenarios, and bounded on everything else."""

import random

import pytest
from bfcl_play import lines_of, roll_out
from rollout_player import bench_prompt

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.credit.reward import make_reward
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.bfcl.package import INSTALL
from pact_lightning.tasks.bfcl.rows import CATEGORIES
from pact_lightning.tasks.bfcl.score import bfcl_case, bfcl_reward, check_trajectory
from pact_lightning.tasks.bfcl.tasks import BFCLTasks
from pact_lightning.types.task import Task

pytest.importorskip("bfcl_eval", reason=f"needs BFCL: {INSTALL}")


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture(scope="module")
def tasks():
    return {task.id: task for task in BFCLTasks(list(CATEGORIES), distractors=0).load()}


def played(renderer, task, user_turns):
    (rollout,) = roll_out(renderer, [(task, lines_of(user_turns))])
    return rollout


def two_user_turns(tasks):
    """`mkdir`-like tasks: two user turns, two or more calls in the first, one in the second."""
    task = tasks["multi_turn_base_0"]
    first, second = task.metadata["ground_truth"][:2]
    assert [call["name"] for call in first] == ["cd", "mkdir", "mv"]
    assert [call["name"] for call in second] == ["cd", "grep"]
    return task


def test_by_hand(renderer, tasks):
    task = two_user_turns(tasks)
    (cd, mkdir, mv), (cd_temp, grep), *rest = task.metadata["ground_truth"]
    after = [[calls] for calls in rest]
    idle = [0.0] * (2 * len(after))

    whole = bfcl_reward(played(renderer, task, [[[cd, mkdir], [mv]], [[cd_temp], [grep]], *after]), task)
    assert whole == [0, 0, 1, 0, 0, 1, *([0, 1] * len(after))]

    # The file is not moved: in the first user turn the state is wrong and two of three responses are there.
    missed = bfcl_reward(played(renderer, task, [[[cd, mkdir]], [[cd_temp], [grep]], *after]), task)
    assert missed[:2] == [0, pytest.approx(0.5 * 2 / 3)]
    assert missed[4] == pytest.approx(0.5 * 1 / 2), "state still wrong; of two responses grep's is another one"

    # Nothing is called in the first user turn, and what was missing is made up for in the second.
    late = bfcl_reward(played(renderer, task, [[], [[cd, mkdir, mv], [cd_temp, grep]], *after]), task)
    assert late[:4] == [0, 0, 0, 1]

    assert bfcl_reward(played(renderer, task, [[], [], *([] for _ in after)]), task) == [0.0] * (2 + len(after))
    only_state = bfcl_reward(played(renderer, task, [[[cd, mkdir]], [[grep]], *after]), task, state_weight=1.0)
    assert only_state == [0, 0, 0, 0, *idle]
    only_responses = bfcl_reward(played(renderer, task, [[[cd, mkdir]], [], *after]), task, state_weight=0.0)
    assert only_responses[:3] == [0, pytest.approx(2 / 3), 0]


def test_a_look_around_in_an_untouched_state_earns_the_state_alone(renderer, tasks):
    task = next(
        task
        for task in tasks.values()
        if task.kind == "base" and [call["name"] for call in task.metadata["ground_truth"][0]] == ["ls"]
    )
    look = {"name": "ls", "arguments": {}}
    turns = [[[look]], *([] for _ in task.prompt.follow_ups)]
    rewards = bfcl_reward(played(renderer, task, turns), task)
    assert rewards[1] in (0.5, 1.0)
    assert sum(rewards[2:]) == 0


def test_user_turns_without_ground_truth_are_not_judged(renderer, tasks):
    task = tasks["multi_turn_miss_func_0"]
    place = task.metadata["ground_truth"].index([])
    steps = [[calls] if calls else [] for calls in task.metadata["ground_truth"]]
    rewards = bfcl_reward(played(renderer, task, steps), task)
    assert sum(rewards) == len(steps) - 1
    steps[place] = [[{"name": "cd", "arguments": {"folder": "nowhere"}}]]
    assert sum(bfcl_reward(played(renderer, task, steps), task)) == len(steps) - 1


def test_a_right_rollout_earns_one_per_judged_user_turn(renderer, tasks):
    chosen = list(tasks.values())[::9]
    plays = [(task, [[calls] if calls else [] for calls in task.metadata["ground_truth"]]) for task in chosen]
    rollouts = roll_out(renderer, [(task, lines_of(steps)) for task, steps in plays])
    for (task, steps), rollout in zip(plays, rollouts, strict=True):
        assert sum(make_reward("bfcl")(rollout, task)) == pytest.approx(sum(map(bool, steps))), task.id


def test_rewards_stay_in_bounds_and_full_reward_is_the_verdict(renderer, tasks):
    chosen = list(tasks.values())[4::11]
    plays = []
    for number, task in enumerate(chosen):
        draw = random.Random(number)
        calls = [call for turn in task.metadata["ground_truth"] for call in turn]
        steps = [[[draw.choice(calls)] for _ in range(draw.randrange(3))] for _ in task.metadata["ground_truth"]]
        plays.append((task, lines_of(steps)))
    for (task, _), rollout in zip(plays, roll_out(renderer, plays), strict=True):
        rewards = bfcl_reward(rollout, task)
        checks = check_trajectory(rollout, task, bfcl_case(task))
        assert all(0 <= reward <= 1 for reward in rewards)
        assert sum(reward == 1 for reward in rewards) == sum(check.valid and check.wanted > 0 for check in checks)


def test_it_is_named_in_a_recipe_and_refuses_other_tasks(renderer, tasks):
    task = two_user_turns(tasks)
    steps = [[calls] for calls in task.metadata["ground_truth"]]
    rollouts = [played(renderer, task, steps), played(renderer, task, [[] for _ in steps])]
    group = make_group(task, rollouts, CreditConfig(reward="bfcl", reward_args={"state_weight": 0.3}))
    assert group.rewards == [pytest.approx(len(steps)), 0]
    with pytest.raises(ValueError, match=r"needs tasks of pact_lightning\.BFCLTasks; task 'bench-0' is"):
        bfcl_reward(rollouts[0], Task(bench_prompt()))
    with pytest.raises(ValueError, match="between 0 and 1"):
        bfcl_reward(rollouts[0], task, state_weight=1.5)

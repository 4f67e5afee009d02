"""Groups: rewards, advantages and masks of hand-made rollouts, with values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hand_made import attempts, bundled_renderer, written

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.types.task import Reference
from pact_lightning.types.trajectory import Component, RolloutTurn, StopReason, Trajectory

RENDERER = bundled_renderer()
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
HALF = {"name": "add", "arguments": {"a": 1, "b": 9}}  # (1 + 1 + 1) / (2 + 2) = 3/4 of a perfect call
TASK = replace(make_task("train", 5), reference=Reference("3 dogs", (ADD,)))


def rollout(sample, *turns):
    return written(RENDERER, TASK, sample, turns)


def two_rollouts():
    """R = 1 + 1 and 3/4 + 2/3: both call, then answer; the second with a wrong value and one word of two wrong."""
    return [
        rollout(0, ("Add.", (ADD,), ("3",)), ("", "<answer>3 dogs</answer>")),
        rollout(1, ("Add.", (HALF,), ("10",)), ("", "<answer>three dogs bark</answer>")),
    ]


def test_rewards_of_turns_and_trajectories_by_hand():
    group = make_group(TASK, two_rollouts(), CreditConfig())
    f1 = 2 * 1 / (3 + 2)
    assert group.turn_rewards == [[1.0, 1.0], [0.75, pytest.approx(f1)]]
    assert group.rewards == [2.0, pytest.approx(0.75 + f1)]
    assert not group.zero_variance


@pytest.mark.parametrize(("fusion", "combine"), [("sum", sum), ("mean", lambda v: sum(v) / 2), ("trajectory", min)])
def test_advantages_on_both_levels_by_hand(fusion, combine):
    """Of two values, normalising leaves +-(d/2) / (d/sqrt(2) + eps), d their difference."""
    group = make_group(TASK, two_rollouts(), CreditConfig(gamma=0.9, eps=1e-6, advantage_fusion=fusion))

    def normalised(difference):
        return (difference / 2) / (difference / math.sqrt(2) + 1e-6)

    trajectory = normalised(2.0 - 1.15)
    turns = [normalised((1 + 0.9) - (0.75 + 0.9 * 0.4)), normalised(1 - 0.4)]
    expected = [combine([trajectory, turn]) if fusion != "trajectory" else trajectory for turn in turns]
    assert group.advantages[0] == pytest.approx(expected)
    assert group.advantages[1] == pytest.approx([-value for value in expected])


def test_eps_keeps_small_differences_small():
    group = make_group(TASK, two_rollouts(), CreditConfig(eps=10.0, advantage_fusion="trajectory"))
    assert group.advantages[0][0] == pytest.approx((0.85 / 2) / (0.85 / math.sqrt(2) + 10.0))


def test_a_turn_index_that_one_rollout_reaches_keeps_its_raw_return():
    short, long = rollout(0, ("", "no idea")), rollout(1, ("Add.", (ADD,), ("3",)), ("", "3 dogs"))
    group = make_group(TASK, [short, long], CreditConfig(eps=1e-9))
    assert group.turn_rewards == [[0.0], [1.0, 1.0]]
    half = 1 / math.sqrt(2)
    assert group.advantages[0] == pytest.approx([-half - half], abs=1e-6)
    assert group.advantages[1] == pytest.approx([half + half, half + 1.0], abs=1e-6)


def test_the_outcome_reward_is_the_answers_f1_alone():
    group = make_group(TASK, two_rollouts(), CreditConfig(reward="outcome"))
    assert group.turn_rewards == [[0.0, 1.0], [0.0, pytest.approx(0.4)]]


def test_a_rollout_that_was_cut_has_no_answer_and_no_reward_for_one():
    cut = rollout(0, ("Add.", (ADD,), ("3",)), ("", "3 dogs"))
    cut.stop_reason = StopReason.MAX_TOKENS_TURN
    for reward, expected in (("matchtir", [1.0, 0.0]), ("outcome", [0.0, 0.0])):
        assert make_group(TASK, [cut], CreditConfig(reward=reward)).turn_rewards == [expected]


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, 0.5), (0.5, 0.25)])
def test_a_malformed_call_is_a_call_that_matches_nothing(penalty, expected):
    """A turn of one perfect and one malformed call: (1 - penalty) / 2."""
    ids = RENDERER.codec.control(
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
        "<tool_call>\nadd(1)\n</tool_call><|im_end|>"
    )
    trajectory = Trajectory(TASK.id, 0, (1,), stop_reason=StopReason.MAX_TURNS)
    trajectory.segments = RENDERER.turn_segments(ids, 0)
    trajectory.turns = [RENDERER.read_turn(ids)]
    assert [entry.call is None for entry in trajectory.turns[0].parsed] == [False, True]
    assert make_group(TASK, [trajectory], CreditConfig(unmatched_penalty=penalty)).turn_rewards == [[expected]]


@pytest.mark.parametrize("reward", ["matchtir", "toolrl"])
def test_calls_of_a_turn_that_was_cut_before_they_ran_earn_nothing(reward):
    """Nor do they take a reference call from one that ran. Calls that ran before a limit was met count."""
    credit = CreditConfig(reward=reward)

    def rewards(*turns, stop, responses=()):
        cut = rollout(0, *turns)
        cut.stop_reason = stop
        cut.turns[-1] = replace(cut.turns[-1], responses=responses)
        return make_group(TASK, [cut], credit).turn_rewards[0]

    lowest = {"matchtir": 0.0, "toolrl": -3.0}[reward]
    for stop in (StopReason.MAX_TOKENS_TURN, StopReason.MAX_TOKENS_TRAJECTORY):
        assert rewards(("Add.", (ADD,), ()), stop=stop) == [lowest]
    assert rewards(("Add.", (ADD,), ()), stop=StopReason.MAX_TOKENS_TRAJECTORY, responses=("3",))[0] > 0.5
    nothing = rewards(("Add.", (HALF,), ("10",)), ("", "no idea"), stop=StopReason.MAX_TOKENS_TURN)
    if reward == "matchtir":
        again = rewards(("Add.", (HALF,), ("10",)), ("Add.", (ADD, ADD), ()), stop=StopReason.MAX_TOKENS_TURN)
        assert again == nothing == [0.75, 0.0]


def test_a_penalty_falls_on_calls_that_were_never_run_as_on_malformed_ones():
    cut = rollout(0, ("Add.", (ADD,), ()))
    cut.stop_reason = StopReason.MAX_TOKENS_TURN
    assert make_group(TASK, [cut], CreditConfig(unmatched_penalty=0.5)).turn_rewards == [[-0.5]]


def test_zero_variance_is_told_by_the_advantages():
    same = [rollout(sample, ("", answer)) for sample, answer in enumerate(("cats", "birds"))]
    group = make_group(TASK, same, CreditConfig())
    assert group.zero_variance
    assert group.advantages == [[0.0], [0.0]]
    # Equal sums from different turns: the turns differ, unless rollouts are compared as a whole.
    swapped = [
        rollout(0, ("Add.", (ADD,), ("3",)), ("", "cats")),
        rollout(1, ("Look.", ({"name": "look", "arguments": {}},), ("?",)), ("", "3 dogs")),
    ]
    group = make_group(TASK, swapped, CreditConfig())
    assert group.rewards == [1.0, 1.0]
    assert not group.zero_variance
    half = math.sqrt(0.5)  # [1, 0] and [0, 1]: returns 1 and 0.9 at the first turn, 0 and 1 at the second
    for row, sign in zip(group.advantages, (1, -1), strict=True):
        assert row == pytest.approx([sign * half, -sign * half], abs=1e-4)
    assert make_group(TASK, swapped, CreditConfig(advantage_fusion="trajectory")).zero_variance


def test_every_token_of_a_turn_has_the_turns_advantage():
    task = make_task("train", 1)
    group = make_group(task, attempts(RENDERER, task), CreditConfig())
    for sample, trajectory in enumerate(group.trajectories):
        expected = [group.advantages[sample][segment.turn] for segment in trajectory.segments for _ in segment.ids]
        torch.testing.assert_close(group.token_advantages(sample), torch.tensor(expected))
        assert len(set(group.advantages[sample])) == len(trajectory.turns)


def test_the_policy_mask_holds_what_the_policy_wrote_and_nothing_of_the_observations():
    task = make_task("train", 1)
    group = make_group(task, attempts(RENDERER, task), CreditConfig())
    for sample, trajectory in enumerate(group.trajectories):
        mask = group.policy_mask(sample)
        observed = torch.from_numpy(trajectory.components()) == Component.OBSERVATION
        assert torch.equal(mask, ~observed)
        seen = RENDERER.codec.decode(trajectory.ids()[observed.numpy()].tolist())
        wrote = RENDERER.codec.decode(trajectory.ids()[mask.numpy()].tolist())
        assert ("<tool_response>" in seen) == (len(trajectory.turns) > 1)
        assert "<tool_response>" not in wrote
        assert wrote.count("<|im_end|>") == len(trajectory.turns)


def failed(sample):
    turn = RolloutTurn("", responses=("environment failed: no server",))
    return Trajectory(TASK.id, sample, (1,), turns=[turn], stop_reason=StopReason.ENVIRONMENT_FAILED)


def test_rollouts_without_an_environment_are_left_out():
    group = make_group(TASK, [failed(0), *two_rollouts()], CreditConfig())
    assert (len(group.trajectories), len(group.failed)) == (2, 1)
    assert group.rewards[0] == 2.0


def test_a_group_without_any_rollout_has_no_variance():
    group = make_group(TASK, [failed(0), failed(1)], CreditConfig())
    assert (group.trajectories, group.rewards, group.advantages, len(group.failed)) == ([], [], [], 2)
    assert group.zero_variance


def test_a_single_rollout_has_nothing_to_be_compared_with():
    group = make_group(TASK, [failed(0), two_rollouts()[0]], CreditConfig())
    assert group.rewards == [2.0]
    assert group.advantages == [[0.0, 0.0]]
    assert group.single
    assert not group.zero_variance, "it is counted apart"


def test_a_rollout_without_policy_tokens_is_refused():
    observed = [replace(segment, component=Component.OBSERVATION) for segment in two_rollouts()[0].segments]
    broken = replace(two_rollouts()[0], segments=observed)
    group = make_group(TASK, [broken], CreditConfig())
    with pytest.raises(ValueError, match="rollout 0 of task train-5 has no policy token"):
        group.policy_mask(0)

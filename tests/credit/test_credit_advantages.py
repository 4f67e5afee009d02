"""Dual-level advantages: worked by hand, and against torch's own mean and standard deviation."""

import re
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.credit.advantages import dual_level_advantages, is_zero_variance
from pact_lightning.credit.rewards import outcome_reward

GROUPS = st.lists(st.lists(st.floats(-2, 2), max_size=4), min_size=1, max_size=5)


def test_by_hand():
    # R = 3, 1: mean 2, unbiased std sqrt(2) -> +-1/sqrt(2).
    # turn 0: R^l = 1 + 0.5 * 2 = 2 and 1: mean 1.5, std sqrt(1/2) -> +-1/sqrt(2). turn 1: one rollout, raw 2.
    a = 1 / sqrt(2)
    advantages = dual_level_advantages([[1.0, 2.0], [1.0]], gamma=0.5, eps=1e-12)
    assert advantages[0] == pytest.approx([2 * a, a + 2.0], abs=1e-9)
    assert advantages[1] == pytest.approx([-2 * a], abs=1e-9)


def test_discounted_returns_by_hand_through_a_turn_reached_once():
    # only the second rollout goes past turn 0: its raw returns are 0.9 * 0.9 + 0.5 * ... written out
    second = dual_level_advantages([[0.0], [0.0, 1.0, 2.0, 4.0]], gamma=0.5)[1]
    level = second[3] - 4.0  # A^g of the second rollout
    assert [value - level for value in second[1:]] == pytest.approx([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0])


def test_eps_is_added_to_the_standard_deviation():
    # R = 1, 0: std = sqrt(1/2); gamma 0 makes both levels equal
    expected = 0.5 / (sqrt(0.5) + 0.25)
    assert dual_level_advantages([[1.0], [0.0]], eps=0.25, fusion="trajectory")[0] == pytest.approx([expected])
    assert dual_level_advantages([[1.0], [0.0]], eps=0.25)[0] == pytest.approx([2 * expected])


@given(GROUPS)
def test_mean_is_half_of_sum(group):
    total = dual_level_advantages(group, fusion="sum")
    mean = dual_level_advantages(group, fusion="mean")
    assert [[value / 2 for value in rollout] for rollout in total] == mean


@given(st.lists(st.lists(st.floats(-2, 2), max_size=4), min_size=2, max_size=5))
def test_trajectory_level_equals_torch_and_is_constant_over_turns(group):
    returns = torch.tensor([sum(rewards) for rewards in group], dtype=torch.float64)
    expected = ((returns - returns.mean()) / (returns.std(unbiased=True) + 1e-6)).tolist()
    for values, rewards, value in zip(dual_level_advantages(group, fusion="trajectory"), group, expected, strict=True):
        assert values == pytest.approx([value] * len(rewards), abs=1e-7)


@given(GROUPS)
def test_shape_is_kept(group):
    assert [len(values) for values in dual_level_advantages(group)] == [len(rewards) for rewards in group]


@given(st.lists(st.lists(st.floats(-2, 2), min_size=3, max_size=3), min_size=2, max_size=5))
def test_where_all_rollouts_reach_a_turn_its_advantages_sum_to_zero(group):
    advantages = torch.tensor(dual_level_advantages(group), dtype=torch.float64)
    assert advantages.sum(dim=0).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_group_of_one_keeps_its_raw_returns():
    assert dual_level_advantages([[1.0, 2.0]], gamma=0.5) == [[3.0 + 2.0, 3.0 + 2.0]]
    assert dual_level_advantages([[1.0, 2.0]], fusion="trajectory") == [[3.0, 3.0]]


def test_a_rollout_without_turns_counts_with_zero_return():
    a = 0.5 / (sqrt(0.5) + 1e-6)
    assert dual_level_advantages([[1.0], []], fusion="trajectory") == [pytest.approx([a]), []]


def test_equal_rollouts_have_no_advantage():
    assert dual_level_advantages([[0.1, 0.7]] * 3) == [pytest.approx([0.0, 0.0], abs=1e-9)] * 3


def test_grpo_is_the_outcome_reward_with_the_trajectory_level():
    group = [outcome_reward(2, "yes", "yes"), outcome_reward(3, "no", "yes"), outcome_reward(1, None, "yes")]
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    expected = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()
    advantages = dual_level_advantages(group, fusion="trajectory")
    assert advantages == [pytest.approx([e] * n) for e, n in zip(expected, (2, 3, 1), strict=True)]


@pytest.mark.parametrize(
    ("turn_rewards", "expected"),
    [
        ([[0.0], [0.0], [0.0]], True),
        ([[0.1, 0.2], [0.1, 0.2]], True),
        ([[0.1 + 0.2], [0.3]], True),  # differs by rounding alone
        ([[0.0], [0.0], [1e-3]], False),
        ([[1.0, 0.0], [0.0, 1.0]], False),  # equal sums, from different turns
        ([[1.0], [1.0, 0.0]], True),  # one turn more, which earns nothing
        ([[1.0], [0.5, 0.5]], False),
        ([[], []], True),
    ],
)
@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_zero_variance_means_that_every_advantage_is_0(turn_rewards, expected, eps):
    assert is_zero_variance(dual_level_advantages(turn_rewards, eps=eps)) is expected


@given(st.lists(st.floats(-2, 2), max_size=4), st.integers(2, 6))
def test_rollouts_that_earn_the_same_turn_by_turn_have_no_variance(rewards, count):
    assert is_zero_variance(dual_level_advantages([rewards] * count))
    assert is_zero_variance(dual_level_advantages([[sum(rewards)], [sum(reversed(rewards))]]))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="a group needs at least one rollout"):
        dual_level_advantages([])
    for reward in ("nan", "inf", "1e+31"):
        with pytest.raises(ValueError, match=re.escape(f"reward 1 of rollout 0 is {reward}; rewards must be finite")):
            dual_level_advantages([[0.0, float(reward)]])
    with pytest.raises(ValueError, match="unknown fusion 'max'"):
        dual_level_advantages([[0.0]], fusion="max")
    for bad in ({"gamma": 1.1}, {"gamma": -0.1}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="0 <= gamma <= 1 and eps > 0"):
            dual_level_advantages([[0.0]], **bad)

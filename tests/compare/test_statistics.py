"""Means, differences and their intervals: against scipy, against values worked by hand, and what must not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from pact_lightning.compare.statistics import mean_interval, paired_difference

_rng = np.random.default_rng(0)
HITS = (_rng.random(120) < 0.7).astype(float)
REPLIES = (_rng.random(120) < 0.5).astype(float)


def by_task(values, name="t"):
    return {f"{name}{number}": float(value) for number, value in enumerate(values)}


def scipy_interval(values):
    found = bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=1)
    return found.confidence_interval


def test_one_seed_is_the_bootstrap_over_tasks_of_scipy():
    own, scipys = mean_interval({3: by_task(HITS)}), scipy_interval(HITS)
    assert own.mean == pytest.approx(HITS.mean())
    assert (own.low, own.high) == pytest.approx((scipys.low, scipys.high), abs=0.012)
    assert (own.seeds, own.tasks) == (1, 120)


def test_one_task_is_the_bootstrap_over_seeds_of_scipy():
    own, scipys = mean_interval({seed: {"t": value} for seed, value in enumerate(HITS)}), scipy_interval(HITS)
    assert (own.low, own.high) == pytest.approx((scipys.low, scipys.high), abs=0.012)


def test_a_difference_is_paired_and_not_that_of_two_separate_draws():
    easier = np.minimum(HITS + 0.1, 1.0)  # every task a little better or the same
    own = paired_difference({0: by_task(easier)}, {0: by_task(HITS)})
    scipys = scipy_interval(easier - HITS)
    assert own.mean == pytest.approx((easier - HITS).mean())
    assert (own.low, own.high) == pytest.approx((scipys.low, scipys.high), abs=0.005)
    assert own.low > 0  # unpaired, the interval of HITS alone is 0.16 wide
    apart = paired_difference({0: by_task(REPLIES)}, {0: by_task(HITS)})
    assert apart.high - apart.low > 0.15


def test_seeds_that_differ_widen_the_interval_beyond_that_of_tasks():
    tasks = 1000
    apart = {0: by_task(np.full(tasks, 0.2)), 1: by_task(np.full(tasks, 0.8))}
    found = mean_interval(apart)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8))
    alike = {seed: by_task(np.resize([0.0, 1.0], tasks)) for seed in range(2)}
    found = mean_interval(alike)
    # Tasks are shared by the seeds, so that two seeds alike say no more of them than one: 0.5 +- 1.96 sqrt(.25 / 1000).
    assert (found.low, found.high) == pytest.approx((0.469, 0.531), abs=0.003)


def test_only_what_both_have_is_compared():
    ours = {0: {"a": 1.0, "b": 1.0}, 1: {"a": 0.0}, 7: {"a": 0.0}}
    theirs = {0: {"a": 0.0, "c": 1.0}, 1: {"a": 1.0}}
    found = paired_difference(ours, theirs)
    assert (found.mean, found.seeds, found.tasks) == (0.0, 2, 1)
    assert paired_difference({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None
    assert paired_difference({0: {"a": 1.0}}, {0: {"b": 1.0}}) is None


def test_seeds_with_tasks_of_their_own_count_by_their_tasks():
    found = mean_interval({0: {"a": 1.0, "b": 1.0, "c": 1.0}, 1: {"d": 0.0}})
    assert found.mean == 0.75
    assert 0 <= found.low <= found.high <= 1


def test_no_scores_are_no_mean():
    with pytest.raises(ValueError, match="no scores"):
        mean_interval({})
    with pytest.raises(ValueError, match="no scores"):
        mean_interval({0: {}})


_scores = st.dictionaries(
    st.integers(0, 5),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(scores=_scores, data=st.data())
def test_order_does_not_matter_and_a_run_differs_from_itself_by_nothing(scores, data):
    found = mean_interval(scores)
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9 or len(scores) > 1  # few seeds with few tasks: skewed draws
    turned = {
        seed: dict(data.draw(st.permutations(list(scores[seed].items()))))
        for seed in data.draw(st.permutations(list(scores)))
    }
    assert mean_interval(turned) == found
    own = paired_difference(scores, scores)
    assert (own.mean, own.low, own.high) == (0, 0, 0)
    other = {seed: {task: 1 - value for task, value in of.items()} for seed, of in scores.items()}
    there, back = paired_difference(scores, other), paired_difference(other, scores)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-9)

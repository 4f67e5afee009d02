"""Call similarity and matching: worked values, brute force over all matchings, closed forms of the transport plan."""

from itertools import permutations
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.credit.matching import call_similarity, json_equal, match_calls


def call(name, /, **arguments):
    return {"name": name, "arguments": arguments}


CALLS = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    st.sampled_from(["add", "Add", "mul"]),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, True, "1", [1]]), max_size=3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def best_total(predicted, reference):
    """Optimum over every injective matching, by enumeration."""
    rows, columns = (predicted, reference) if len(predicted) <= len(reference) else (reference, predicted)
    swap = rows is not predicted
    return max(
        sum(call_similarity(*((columns[j], rows[i]) if swap else (rows[i], columns[j]))) for i, j in enumerate(chosen))
        for chosen in permutations(range(len(columns)), len(rows))
    )


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        (call("add", a=1, b=2), call("add", a=1, b=2), 1.0),
        (call("now"), call("now"), 1.0),  # (1 + 1 + 0) / 2: no argument names at all count as the same names
        (call("ADD", a=1, b=2), call("add", a=1, b=2), 1.0),
        (call("add", a=1, b=2), call("sub", a=1, b=2), 0.0),
        (call("add", a=1, b=3), call("add", a=1, b=2), 3 / 4),  # (1 + 1 + 1) / 4
        (call("add", a=1), call("add", a=1, b=2), (1 + 1 / 2 + 1) / 4),
        (call("add", a=1, b=2, c=3), call("add", a=1, b=2), (1 + 2 / 3 + 2) / 4),
        (call("add", x=1), call("add", a=1), 1 / 3),  # the name alone
        (call("add", x=1), call("add"), 1 / 2),
        (call("add", a=True), call("add", a=1), 2 / 3),
        (call("add", a=1.0), call("add", a=1), 1.0),
        (call("add", a={"k": [1, {"m": None}]}), call("add", a={"k": [1, {"m": None}]}), 1.0),
        (call("add", A=1), call("add", a=1), 1 / 3),  # case is free in tool names only
    ],
)
def test_similarity_by_hand(predicted, reference, expected):
    assert call_similarity(predicted, reference) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (True, 1, False),
        (False, 0, False),
        (False, 0.0, False),
        (True, True, True),
        (1, 1.0, True),
        (2**53 + 1, float(2**53), False),  # compared exactly, not as floats
        (None, 0, False),
        (None, False, False),
        ("1", 1, False),
        ([], {}, False),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": [True]}, {"a": [1]}, False),
        ([[1], {"k": False}], [[1.0], {"k": False}], True),
        ({"a": 1}, {"a": 1, "b": None}, False),
    ],
)
def test_values_are_compared_as_json_and_not_as_python(left, right, equal):
    assert json_equal(left, right) is equal
    assert json_equal(right, left) is equal


@settings(deadline=None)
@given(JSON)
def test_a_json_value_equals_itself(value):
    assert json_equal(value, value)


def test_nesting_has_no_depth_limit():
    deep, other = [1], [2]
    for _ in range(50_000):
        deep, other = [deep], [other]
    assert json_equal(deep, deep)
    assert not json_equal(deep, other)


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4), st.lists(CALLS, min_size=1, max_size=4))
def test_hungarian_reaches_the_optimum_and_greedy_never_exceeds_it(predicted, reference):
    optimum = best_total(predicted, reference)
    assert sum(match_calls(predicted, reference)) == pytest.approx(optimum, abs=1e-12)
    greedy = sum(match_calls(predicted, reference, method="greedy"))
    assert optimum / 2 - 1e-12 <= greedy <= optimum + 1e-12  # greedy matching is a 1/2-approximation


def best_by_rule(predicted, reference):
    """Of all injective matchings with the largest sum, that in which the last call earns least, then the one before."""
    grid = [[call_similarity(p, r) for r in reference] + [0.0] * len(predicted) for p in predicted]
    columns = range(len(reference) + len(predicted))
    earned = [
        [grid[row][column] for row, column in enumerate(chosen)] for chosen in permutations(columns, len(predicted))
    ]
    largest = max(map(sum, earned))
    return min((scores for scores in earned if sum(scores) > largest - 1e-9), key=lambda scores: scores[::-1])


@settings(max_examples=100, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=3), st.lists(CALLS, min_size=1, max_size=3))
def test_of_all_best_matchings_the_last_call_earns_least_then_the_one_before(predicted, reference):
    assert match_calls(predicted, reference) == pytest.approx(best_by_rule(predicted, reference), abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=6), st.lists(CALLS, min_size=1, max_size=5), CALLS, st.integers(0))
def test_a_further_call_that_does_not_raise_the_sum_earns_nothing_and_moves_no_credit(predicted, reference, new, n):
    """Be it a repeated call or another one."""
    before = match_calls(predicted, reference)
    for further in (new, predicted[n % len(predicted)]):
        after = match_calls([*predicted, further], reference)
        assert sum(after) >= sum(before) - 1e-12
        if sum(after) < sum(before) + 1e-9:
            assert after == pytest.approx([*before, 0.0], abs=1e-12)


@pytest.mark.parametrize("repeated", [0, 1])
def test_a_repeated_call_moves_no_credit_where_several_matchings_are_best(repeated):
    """Either call could be credited for either reference call, at half a point; the repeated one takes nothing."""
    predicted = [call("add", a=0, b=0), call("add", b=0)]
    reference = [call("add"), call("add", a=1, b=1)]
    assert match_calls(predicted, reference) == [0.5, 0.5]
    assert match_calls([*predicted, predicted[repeated]], reference) == [0.5, 0.5, 0.0]


def test_greedy_falls_short_of_the_optimum():
    # similarities [[0.375, 0.5], [0.25, 0.5]]: greedy takes 0.5 for the first call and leaves 0.25 to the second
    predicted = [call("f", a=0), call("f", b=1)]
    reference = [call("f", a=1, c=1), call("f")]
    assert match_calls(predicted, reference, method="greedy") == [0.5, 0.25]
    assert match_calls(predicted, reference, method="hungarian") == [0.375, 0.5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(CALLS, max_size=6),
    st.lists(CALLS, max_size=4),
    st.sampled_from(["hungarian", "greedy"]),
    st.sampled_from([0.0, 0.5]),
)
def test_one_to_one_no_more_calls_of_a_name_score_than_the_reference_has(predicted, reference, method, penalty):
    scores = match_calls(predicted, reference, method=method, unmatched_penalty=penalty)
    assert len(scores) == len(predicted)
    for name in ("add", "mul"):
        of_name = [s for s, c in zip(scores, predicted, strict=True) if c["name"].lower() == name]
        wanted = sum(c["name"].lower() == name for c in reference)
        assert sum(s > 0 for s in of_name) == min(wanted, len(of_name))
        assert all(s == -penalty or 0 < s <= 1 for s in of_name)


@given(st.lists(CALLS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_perfect_rollout_scores_one_per_call_in_any_order(reference, random):
    predicted = random.sample(reference, len(reference))
    for method in ("hungarian", "greedy"):
        assert match_calls(predicted, reference, method=method) == [1.0] * len(reference)


@pytest.mark.parametrize("method", ["hungarian", "greedy"])
def test_the_earliest_of_equal_calls_is_credited(method):
    add, near, other = call("add", a=1), call("add", a=2), call("mul", a=1)
    assert match_calls([other, add, add, add], [add, add], method=method) == [0.0, 1.0, 1.0, 0.0]
    # near misses that the reference cannot tell apart are equal too: (1 + 1 + 0) / 3
    assert match_calls([near, call("add", a=3)], [add], method=method) == pytest.approx([2 / 3, 0.0])


@pytest.mark.parametrize("method", ["hungarian", "greedy", "ot"])
def test_unmatched_calls_cost_the_penalty(method):
    add, mul = call("add", a=1), call("mul", a=1)
    assert match_calls([mul, mul], [add], method=method, unmatched_penalty=0.25) == [-0.25, -0.25]
    assert match_calls([add, mul], [], method=method, unmatched_penalty=0.25) == [-0.25, -0.25]
    assert match_calls([add], [], method=method) == [0.0]
    assert match_calls([], [add], method=method) == []


def test_a_better_retry_takes_over_the_match():
    near, add = call("add", a=2), call("add", a=1)
    assert match_calls([near], [add]) == pytest.approx([2 / 3])
    assert match_calls([near, add], [add]) == [0.0, 1.0]


class TestOptimalTransport:
    def test_one_call(self):
        assert match_calls([call("add", a=1)], [call("add", a=1)], method="ot") == pytest.approx([1.0])
        # uniform marginals leave half of the call's mass on the reference call it does not answer
        reference = [call("add", a=1), call("mul", a=1)]
        assert match_calls([call("add", a=1)], reference, method="ot") == pytest.approx([0.5])

    def test_two_calls_in_closed_form(self):
        # plan [[t, 1/2 - t], [1/2 - t, t]] with (t / (1/2 - t))^2 = exp((S00 + S11 - S01 - S10) / reg), reg = 0.1
        add, mul = call("add", a=1), call("mul", a=1)
        t = 0.5 / (1 + exp(-10.0))
        assert match_calls([add, mul], [add, mul], method="ot") == pytest.approx([t, t], abs=1e-9)

    @settings(deadline=None)
    @given(st.lists(CALLS, min_size=2, max_size=2), st.lists(CALLS, min_size=2, max_size=2))
    def test_any_two_by_two_grid_in_closed_form(self, predicted, reference):
        s = [[call_similarity(p, r) for r in reference] for p in predicted]
        t = 0.5 / (1 + exp(-(s[0][0] + s[1][1] - s[0][1] - s[1][0]) / 0.2))
        expected = [t * s[0][0] + (0.5 - t) * s[0][1], (0.5 - t) * s[1][0] + t * s[1][1]]
        assert match_calls(predicted, reference, method="ot") == pytest.approx(expected, abs=1e-8)

    def test_equals_sinkhorns_own_iteration(self):
        predicted = [call("add", a=1), call("add", a=2, b=1), call("mul"), call("add")]
        reference = [call("add", a=1), call("mul", a=1), call("add", a=2)]
        grid = np.array([[call_similarity(p, r) for r in reference] for p in predicted])
        kernel, columns = np.exp(grid / 0.1), np.ones(3)
        for _ in range(5000):
            rows = 1 / 4 / (kernel @ columns)
            columns = 1 / 3 / (rows @ kernel)
        expected = (rows[:, None] * kernel * columns * grid).sum(axis=1)
        assert match_calls(predicted, reference, method="ot") == pytest.approx(expected, abs=1e-7)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(CALLS, min_size=1, max_size=5), st.lists(CALLS, min_size=1, max_size=5))
    def test_no_call_scores_more_than_its_mass(self, predicted, reference):
        scores = match_calls(predicted, reference, method="ot")
        assert all(0.0 <= score <= 1 / len(predicted) + 1e-12 for score in scores)
        assert sum(scores) <= best_total(predicted, reference) / min(len(predicted), len(reference)) + 1e-7


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown matching method 'best'; use one of hungarian, greedy, ot"):
        match_calls([], [], method="best")
    for penalty in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="unmatched_penalty is subtracted"):
            match_calls([], [], unmatched_penalty=penalty)

"""Turn rewards by hand, and what extra calls can and cannot earn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.credit.rewards import answer_f1, extract_answer, outcome_reward, turn_rewards


def add(a, b=0):
    return {"name": "add", "arguments": {"a": a, "b": b}}


MUL = {"name": "mul", "arguments": {}}
CALLS = st.one_of(st.builds(add, st.integers(0, 2), st.integers(0, 2)), st.just(MUL))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Paris", "paris", 1.0),
        ("It's Paris!", "its paris", 1.0),
        ("the city of Paris", "Paris", 2 * (1 / 4 * 1) / (1 / 4 + 1)),
        ("a b c", "b c d e", 2 * (2 / 3 * 2 / 4) / (2 / 3 + 2 / 4)),
        ("yes yes yes", "yes", 1.0),  # sets, so repetition changes nothing
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("Paris", "", 0.0),
        ("...", "...", 0.0),
        ("1,000\t\n km", "1000 km", 1.0),
    ],
)
def test_answer_f1_by_hand(prediction, reference, expected):
    assert answer_f1(prediction, reference) == pytest.approx(expected, abs=1e-15)


@given(st.text(), st.text())
def test_answer_f1_is_symmetric_and_bounded(left, right):
    score = answer_f1(left, right)
    assert 0.0 <= score <= 1.0
    assert score == answer_f1(right, left)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>42</answer>", "42"),
        ("first <answer>1</answer>, no: <answer> 2\n3 </answer> done", "2\n3"),
        ("  no tag ", "no tag"),
        ("<answer></answer>", ""),
        ("<answer>1</answer> <answer>2", "1"),  # an open tag is no answer
        ("<answer>open", "<answer>open"),
        ("<answer>a<answer>b</answer>", "b"),
        ("<answer>a</answer></answer>", "a"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_turn_rewards_by_hand():
    turns = [[add(1, 2), MUL], [], [add(3, 9)], []]
    rewards = turn_rewards(turns, [add(1, 2), add(3, 4)], "So <answer>Paris, France</answer>", "Paris")
    # (1 + 0) / 2; no call; (1 + 1 + 1) / 4; F1 = 2 * (1/2 * 1) / (1/2 + 1)
    assert rewards == pytest.approx([0.5, 0.0, 0.75, 2 / 3])


def test_unmatched_and_malformed_calls_cost_the_penalty_within_their_turns_mean():
    turns = [[add(1, 2), MUL], [], [add(1, 2)]]
    rewards = turn_rewards(turns, [add(1, 2)], None, "Paris", malformed=[2, 1, 0], unmatched_penalty=0.5)
    assert rewards == pytest.approx([(1 - 0.5 - 0.5 - 0.5) / 4, -0.5, -0.5])
    assert turn_rewards(turns, [add(1, 2)], None, "Paris", malformed=[2, 1, 0]) == pytest.approx([1 / 4, 0.0, 0.0])


def test_the_matching_is_over_the_whole_rollout():
    # turn by turn, the first call would take the only reference call of its name
    assert turn_rewards([[add(1, 9)], [add(1, 2)]], [add(1, 2)], None, None) == [0.0, 1.0]


def test_without_reference_or_answer_there_is_no_reward():
    assert turn_rewards([[add(1)], []], [], "Paris", None) == [0.0, 0.0]
    assert turn_rewards([[add(1)], []], [add(1)], None, "Paris") == [1.0, 0.0]
    assert turn_rewards([], [add(1)], None, "Paris") == []


@settings(deadline=None)
@given(st.lists(st.lists(CALLS, max_size=3), min_size=1, max_size=4), st.lists(CALLS, max_size=3), st.integers(0, 3))
def test_what_the_rollout_earns_is_bounded_by_the_reference(turns, reference, extra):
    total = sum(turn_rewards([*turns, *[[add(0)]] * extra], reference, None, None))
    assert -1e-12 <= total <= len(reference) + 1e-12


@settings(deadline=None)
@given(
    reference=st.lists(CALLS, min_size=1, max_size=3),
    others=st.lists(st.lists(CALLS, max_size=2), max_size=2),
    surplus=st.lists(CALLS, min_size=1, max_size=3),
    own_turn=st.booleans(),
    method=st.sampled_from(["hungarian", "greedy"]),
    penalty=st.sampled_from([0.0, 0.3]),
)
def test_once_the_reference_is_met_further_calls_never_raise_the_reward(
    reference, others, surplus, own_turn, method, penalty
):
    turns = [*others, reference]
    longer = [*turns, surplus] if own_turn else [*turns[:-1], [*turns[-1], *surplus]]

    def total(calls):
        return sum(turn_rewards(calls, reference, None, None, method=method, unmatched_penalty=penalty))

    assert total(longer) <= total(turns) + 1e-12


@settings(deadline=None)
@given(
    calls=st.lists(CALLS, min_size=1, max_size=6),
    reference=st.lists(CALLS, max_size=3),
    penalty=st.sampled_from([0.0, 0.3]),
)
def test_calls_that_are_not_matched_never_raise_the_reward(calls, reference, penalty):
    def rewards(chosen):
        return turn_rewards([[c] for c in chosen], reference, None, None, unmatched_penalty=penalty)

    scored = rewards(calls)
    matched = [c for c, score in zip(calls, scored, strict=True) if score > 0]
    assert sum(scored) <= sum(rewards(matched)) + 1e-12


@pytest.mark.parametrize("repeats", [1, 2, 50])
def test_endless_near_misses_earn_what_one_earns(repeats):
    turns = [[add(1, 9)]] * repeats
    assert sum(turn_rewards(turns, [add(1, 2)], None, None)) == pytest.approx(0.75)


def test_a_malformed_call_never_raises_the_reward():
    turns = [[add(1)], [add(2)]]
    reference = [add(1), add(2)]
    totals = [sum(turn_rewards(turns, reference, None, None, malformed=[n, 0])) for n in range(4)]
    assert totals == pytest.approx([2, 1 + 1 / 2, 1 + 1 / 3, 1 + 1 / 4])


def test_outcome_reward():
    assert outcome_reward(3, "<answer>Paris</answer>", "paris") == [0.0, 0.0, 1.0]
    assert outcome_reward(2, None, "paris") == [0.0, 0.0]
    assert outcome_reward(2, "Paris", None) == [0.0, 0.0]
    assert outcome_reward(0, None, None) == []


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="needs a last turn without tool calls"):
        turn_rewards([[add(1)]], [], "42", "42")
    with pytest.raises(ValueError, match="needs a last turn without tool calls"):
        turn_rewards([[]], [], "42", "42", malformed=[1])
    with pytest.raises(ValueError, match="needs a last turn"):
        turn_rewards([], [], "42", "42")
    with pytest.raises(ValueError, match=r"one count >= 0 per turn, 2 in all; got \[1\]"):
        turn_rewards([[], []], [], None, None, malformed=[1])
    with pytest.raises(ValueError, match=r"got \[-1\]"):
        turn_rewards([[]], [], None, None, malformed=[-1])
    with pytest.raises(ValueError, match="unmatched_penalty"):
        turn_rewards([[]], [], None, None, malformed=[1], unmatched_penalty=-1.0)
    with pytest.raises(ValueError, match="with an answer has no 0 turns"):
        outcome_reward(0, "42", "42")

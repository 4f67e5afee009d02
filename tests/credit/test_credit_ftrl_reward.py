"""FTRL's reward of every turn: values worked by hand, and what holds for all rollouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.credit.answers import count_solved
from pact_lightning.credit.other_rewards import STRAY_TAGS, ftrl_rewards
from pact_lightning.credit.reward import make_reward
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory

OPEN = [("river", "Danube"), ("length", "2,850"), ("length", "1,233")]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("river", "Danube")], 2 * 1 / 2),
        ([("river", "Danube"), ("length", "2850 km")], 2 * 2 / 3),
        ([("river", "Danube"), ("length", "2850 km"), ("length", "1233 km")], 2 * 3 / 4),
        ([("river", "Danube"), ("river", "Danube")], 2 * 1 / 3),  # an answer is solved once
        ([("length", "2850 and 1233")], 2 * 1 / 2),  # a call solves at most one
        ([("length", "Danube")], 0.0),  # another tool's answer
        ([("river", None)], 0.0),  # never run
        ([("river", "Danube"), ("river", None)], 2 * 1 / 3),
    ],
)
def test_a_turn_with_calls(calls, expected):
    assert ftrl_rewards([calls], [""], OPEN, "2,850") == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("", "x", -0.5),
        (" \n", "x", -0.5),
        *((f"so {tag} x", "x", -0.3) for tag in STRAY_TAGS),
        ("It is 2850 km.", "2,850", 1 / 4),  # three are open
        ("IT IS 2,850.", " 2,850 ", 1 / 4),
        ("no idea", "2,850", 0.0),
        ("anything", None, 0.0),
        ("anything", " , ", 0.0),  # an answer of nothing is held by no text
    ],
)
def test_a_turn_without_calls(text, answer, expected):
    assert ftrl_rewards([[]], [text], OPEN, answer) == [pytest.approx(expected)]


def test_the_open_set_is_carried_through_the_rollout():
    turns = [[("river", "Danube")], [("river", "Danube")], [("length", "1233"), ("length", "2850")], []]
    texts = ["", "", "", "I am done."]
    assert ftrl_rewards(turns, texts, OPEN, "2850") == pytest.approx([1.0, 0.0, 4 / 3, 0.5])
    assert ftrl_rewards(turns, [*texts[:3], "2850"], OPEN, "2850")[-1] == 1.0
    assert ftrl_rewards([turns[0], []], ["", "2850"], OPEN, "2850") == pytest.approx([1.0, 1 / 3])


def test_malformed_calls():
    assert ftrl_rewards([[("river", "Danube")]], [""], OPEN, None, malformed=[1]) == pytest.approx([2 / 3])
    assert ftrl_rewards([[]], [""], OPEN, None, malformed=[2]) == [-0.3]


def test_a_task_without_expected_answers_has_nothing_to_finish():
    assert ftrl_rewards([[], []], ["no", "yes"], [], "yes") == [0.0, 1.0]


def test_sequences_must_fit():
    for wrong in ({"texts": ["", ""]}, {"texts": [""], "malformed": [0, 0]}, {"texts": [""], "malformed": [-1]}):
        with pytest.raises(ValueError, match="for each turn"):
            ftrl_rewards([[]], sub_answers=[], answer=None, **wrong)


tools = st.sampled_from(["a", "b"])
words = st.sampled_from(["1", "2", "1, 2", "12", "x"])
calls = st.lists(st.tuples(tools, words), max_size=4)
open_sets = st.lists(st.tuples(tools, words), max_size=4)


@given(st.lists(calls, min_size=1, max_size=4), open_sets)
def test_calls_earn_what_the_metric_counts_as_solved(turns, still_open):
    rewards = ftrl_rewards(turns, [""] * len(turns), still_open, None)
    solved = sum(reward * (len(turn) + 1) / 2 for turn, reward in zip(turns, rewards, strict=True) if turn)
    flat = [call for turn in turns for call in turn]
    assert solved == pytest.approx(count_solved(flat, [SubAnswer(*pair) for pair in still_open]))
    assert all(-0.5 <= reward < 2 for reward in rewards)


@given(calls.filter(bool), open_sets)
def test_a_call_that_solves_nothing_lowers_what_is_earned(turn, still_open):
    (before,) = ftrl_rewards([turn], [""], still_open, None)
    (after,) = ftrl_rewards([[*turn, ("unknown", "x")]], [""], still_open, None)
    (broken,) = ftrl_rewards([turn], [""], still_open, None, malformed=[1])
    assert after == broken
    assert after < before or before == after == 0


@given(calls.filter(bool), open_sets)
def test_repeating_a_turn_earns_nothing_that_was_solved(turn, still_open):
    """Only what one pass leaves open can still be earned, and with it all is earned at most once."""
    rewards = ftrl_rewards([turn] * 6, [""] * 6, still_open, None)
    assert sum(rewards) * (len(turn) + 1) / 2 <= len(still_open) + 1e-9
    assert rewards == sorted(rewards, reverse=True)


def rollout(*turns, stop=StopReason.ANSWERED):
    return Trajectory("t", 0, (), turns=list(turns), stop_reason=stop)


def call(name):
    return ParsedCall({"name": name, "arguments": {}})


def test_by_name_it_scores_a_rollout():
    prompt = PromptView("t", ({"role": "user", "content": "?"},), (), EnvironmentSpec("a.B"))
    task = Task(prompt, Reference("2,850", (), tuple(SubAnswer(*pair) for pair in OPEN)))
    bad = ParsedCall(None, "is broken")
    played = rollout(
        RolloutTurn("", parsed=(call("river"), bad), responses=("Danube", "is broken"), errors=(False, True)),
        RolloutTurn("", parsed=(bad, call("length")), responses=("is broken", "1233"), errors=(True, False)),
        RolloutTurn("", parsed=(bad,), responses=("is broken",), errors=(True,)),
        RolloutTurn("", answer="2850"),
    )
    assert make_reward("ftrl")(played, task) == pytest.approx([2 / 3, 2 / 3, -0.3, 1 / 2])
    cut = rollout(RolloutTurn("", parsed=(call("river"),)), stop=StopReason.MAX_TOKENS_TURN)
    assert make_reward("ftrl")(cut, task) == [0.0]

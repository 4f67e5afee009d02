"""ToolRL's reward: values worked by hand, a literal restatement, and what holds for all calls."""

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pact_lightning.credit.other_rewards import toolrl_correctness, toolrl_max, toolrl_rewards, toolrl_score
from pact_lightning.credit.reward import make_reward
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory


def call(tool, **arguments):
    return {"name": tool, "arguments": arguments}


ADD = call("add", a=1, b=2)
AGE = call("age", of="town")


@pytest.mark.parametrize(
    ("predicted", "reference", "score", "highest"),
    [
        ([ADD], [ADD], 1 + (1 + 2), 4),
        ([AGE, ADD], [ADD, AGE], 1 + 3 + 2, 6),
        ([call("add", a=1, b=3)], [ADD], 1 + (1 + 1), 4),
        ([call("add", a=1)], [ADD], 1 + (1 / 2 + 1), 4),
        ([call("add", a=1, b=2, c=3)], [ADD], 1 + (2 / 3 + 2), 4),
        ([call("add")], [ADD], 1 + 0, 4),
        ([call("now")], [call("now")], 1 + 1, 2),  # no arguments on either side: their names agree
        ([call("Add", a=1, b=2)], [ADD], 0, 4),  # names are compared as they are
        ([ADD, ADD], [ADD], 1 / 2 + 3, 4),  # repeated names count
        ([ADD], [ADD, AGE], 1 / 2 + 3, 6),
        ([call("add", a=0, b=0), ADD], [ADD], 1 / 2 + 3, 4),  # the best one is taken
        ([ADD], [ADD, ADD], 1 / 2 + 3, 7),  # and only once
        ([call("add", a=True, b="2")], [ADD], 1 + 1, 4),  # JSON's true is not 1
        ([], [ADD], 0, 4),
    ],
)
def test_by_hand(predicted, reference, score, highest):
    assert toolrl_score(predicted, reference) == pytest.approx(score)
    assert toolrl_max(reference) == highest
    assert toolrl_correctness(predicted, reference) == pytest.approx(6 * score / highest - 3)


def test_without_a_reference_nothing_is_correct_or_wrong():
    assert toolrl_correctness([], []) == toolrl_correctness([ADD], []) == 0.0


def test_the_last_turn_earns_it_all():
    turns = [[ADD], [AGE], []]
    assert toolrl_rewards(turns, [ADD, AGE], well_formed=[True] * 3) == [0, 0, 1 + 3]
    assert toolrl_rewards(turns, [ADD, AGE], well_formed=[True, False, True]) == [0, 0, 3]
    assert toolrl_rewards([[]], [ADD], well_formed=[False]) == [-3]
    assert toolrl_rewards([], [ADD], well_formed=[]) == []
    with pytest.raises(ValueError, match="one entry per turn, 3 in all; got 1"):
        toolrl_rewards(turns, [], well_formed=[True])


names = st.sampled_from(["a", "b", "c"])
arguments = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=3)
call_lists = st.lists(st.builds(lambda name, given: {"name": name, "arguments": given}, names, arguments), max_size=4)


def restated(predicted, reference):
    """The formulas once more, for calls whose order decides nothing: names of the reference are unique."""

    def overlap(left, right):
        both = Counter([*left]) & Counter([*right])
        either = Counter([*left]) | Counter([*right])
        return sum(both.values()) / sum(either.values()) if either else 1.0

    score = overlap([c["name"] for c in predicted], [c["name"] for c in reference])
    highest = 1
    for wanted in reference:
        fits = [0.0]
        for given_call in predicted:
            if given_call["name"] == wanted["name"]:
                got, ref = given_call["arguments"], wanted["arguments"]
                fits.append(overlap(got, ref) + sum(ref[k] == got.get(k, object()) for k in ref))
        score += max(fits)
        highest += 1 + len(wanted["arguments"])
    return score, highest


@given(call_lists, call_lists)
def test_it_is_the_formula(predicted, reference):
    unique = list({c["name"]: c for c in reference}.values())
    score, highest = restated(predicted, unique)
    assert toolrl_score(predicted, unique) == pytest.approx(score)
    assert toolrl_max(unique) == highest


@given(call_lists, call_lists)
def test_bounds(predicted, reference):
    score, highest = toolrl_score(predicted, reference), toolrl_max(reference)
    assert 0 <= score <= highest + 1e-9
    assert -3 <= toolrl_correctness(predicted, reference) <= 3 + 1e-9
    assert toolrl_score(reference, reference) == pytest.approx(highest)


@given(call_lists, call_lists, st.randoms())
def test_the_order_of_predicted_calls_does_not_matter(predicted, reference, random):
    shuffled = list(predicted)
    random.shuffle(shuffled)
    assert toolrl_score(shuffled, reference) == pytest.approx(toolrl_score(predicted, reference))


@given(call_lists, call_lists)
def test_a_call_of_a_foreign_name_never_helps(predicted, reference):
    with_more = [*predicted, call("foreign", x=1)]
    score, more = toolrl_score(predicted, reference), toolrl_score(with_more, reference)
    assert more <= score
    assert more < score or not any(c["name"] == r["name"] for c in predicted for r in reference)


@given(call_lists, st.data())
def test_a_right_value_in_place_of_a_wrong_one_helps(reference, data):
    unique = list({c["name"]: c for c in reference}.values())
    assume(any(c["arguments"] for c in unique))
    wanted = data.draw(st.sampled_from([c for c in unique if c["arguments"]]))
    argument = data.draw(st.sampled_from(sorted(wanted["arguments"])))
    wrong = [
        {"name": c["name"], "arguments": {**c["arguments"], argument: "wrong"}} if c is wanted else c for c in unique
    ]
    assert toolrl_score(unique, unique) == pytest.approx(toolrl_score(wrong, unique) + 1)


PROMPT = PromptView("t", ({"role": "user", "content": "?"},), (), EnvironmentSpec("a.B"))
TASK = Task(PROMPT, Reference("3", (ADD,)))


def rollout(*turns, stop=StopReason.ANSWERED):
    return Trajectory("t", 0, (), turns=list(turns), stop_reason=stop)


def calling(*calls, reasoning="why", responses=True):
    parsed = tuple(ParsedCall(c, "" if c else "is broken") for c in calls)
    given_back = ("3",) * len(parsed) if responses else ()
    return RolloutTurn("", reasoning, parsed=parsed, responses=given_back, errors=(False,) * len(given_back))


ANSWER = RolloutTurn("", "so", "3")


@pytest.mark.parametrize(
    ("played", "options", "expected"),
    [
        (rollout(calling(ADD), ANSWER), {}, 4.0),
        (rollout(calling(ADD, reasoning=""), ANSWER), {}, 3.0),
        (rollout(calling(ADD, reasoning=""), ANSWER), {"require_reasoning": False}, 4.0),
        (rollout(calling(ADD, None), ANSWER), {}, 3.0),
        (rollout(calling(ADD), RolloutTurn("", "so", "")), {}, 3.0),
        (rollout(calling(ADD), stop=StopReason.MAX_TURNS), {}, 4.0),
        (rollout(calling(ADD), ANSWER, stop=StopReason.MAX_TOKENS_TURN), {}, 3.0),
        (rollout(calling(ADD, responses=False), stop=StopReason.MAX_TOKENS_TRAJECTORY), {}, -3.0),
        (rollout(calling(ADD), stop=StopReason.MAX_TOKENS_TRAJECTORY), {}, 4.0),
        (rollout(ANSWER), {}, -2.0),
    ],
)
def test_by_name_it_scores_a_rollout(played, options, expected):
    rewards = make_reward("toolrl", arguments=options)(played, TASK)
    assert rewards == [0.0] * (len(played.turns) - 1) + [expected]

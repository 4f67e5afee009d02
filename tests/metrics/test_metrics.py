"""The metrics, against the rules stated once more here and against cases worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.credit.answers import (
    answer_in_response,
    answers_match,
    count_solved,
    normalise_answer,
    solve_scores,
)
from pact_lightning.metrics.evaluation import EvaluationMetrics
from pact_lightning.metrics.solve import AnswerCorrectness, SolveRate
from pact_lightning.metrics.tool_use import ToolUse
from pact_lightning.metrics.turn_reward import TurnReward
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory

# A metric that saw nothing says NaN; torchmetrics warns about that, and here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")


def good(name, response="", error=False, **arguments):
    return ParsedCall(ToolCall(name=name, arguments=arguments)), response, error


BAD = (ParsedCall(None, "The tool call is not valid JSON."), "not valid JSON", True)


def turn(*entries, answer=""):
    parsed, responses, errors = zip(*entries, strict=True) if entries else ((), (), ())
    return RolloutTurn("", answer=answer, parsed=parsed, responses=responses, errors=errors)


def rollout(*turns, stop=StopReason.ANSWERED):
    return Trajectory("t", 0, (), turns=list(turns), stop_reason=stop)


def values(metric):
    return {key: float(value) for key, value in metric.compute().items()}


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key] == pytest.approx(right[key], abs=1e-6, nan_ok=True), key


def check_merge(make, updates, cut):
    """Two halves, reduced as torchmetrics reduces them across ranks, give what one metric over all gives."""
    whole, first, second = make(), make(), make()
    for index, update in enumerate(updates):
        whole.update(*update)
        (first if index < cut else second).update(*update)
    for name, reduce in whole._reductions.items():
        merged = reduce(torch.stack([getattr(first, name), getattr(second, name)]))
        assert torch.allclose(merged, getattr(whole, name), atol=1e-5)
    if updates:
        first.merge_state(second)
        same(values(first), values(whole))
    whole.reset()
    assert all(math.isnan(value) for value in values(whole).values())


# --- Solve-P, Solve-R, Solve-F1 ---------------------------------------------------------------------------------------


def restated_scores(rollout_calls, unsolved_set):
    """FTRL's rules on the row's own ``{tool: [answer, ...]}``, written apart from the package's code."""
    remaining = {tool: list(answers) for tool, answers in unsolved_set.items()}
    n = sum(len(answers) for answers in unsolved_set.values())
    p = q = 0
    for tool, observation in rollout_calls:
        p += 1
        seen = observation.lower().replace(",", "")
        hits = [
            answer
            for answer in remaining.get(tool, [])
            if not [piece for piece in answer.split(", ") if piece.lower().replace(",", "") not in seen]
        ]
        if hits:
            remaining[tool].remove(hits[0])
            q += 1
    return (q / p if p > 0 else 1.0), q / n, 2 * q / (p + n)


tools = st.sampled_from(["a", "b", "c"])
words = st.sampled_from(["x", "X y", "x, y", "1,000", "1000", "y", "", "1,000, x"])
unsolved_sets = st.dictionaries(tools, st.lists(words, min_size=1, max_size=3), min_size=1)
call_lists = st.lists(st.tuples(tools, st.lists(words, max_size=3).map(" ".join)), max_size=6)


def flat(unsolved_set):
    return tuple(SubAnswer(tool, answer) for tool, answers in unsolved_set.items() for answer in answers)


@settings(deadline=None)
@given(call_lists, unsolved_sets)
def test_scores_follow_the_rules_as_stated_apart(calls, unsolved_set):
    solved = count_solved(calls, flat(unsolved_set))
    n = len(flat(unsolved_set))
    assert solve_scores(n, len(calls), solved) == pytest.approx(restated_scores(calls, unsolved_set))
    assert 0 <= solved <= min(n, len(calls))


@settings(deadline=None)
@given(call_lists, unsolved_sets, st.tuples(tools, words))
def test_one_more_call_never_lowers_recall_and_solves_at_most_one_more(calls, unsolved_set, extra):
    before = count_solved(calls, flat(unsolved_set))
    after = count_solved([*calls, extra], flat(unsolved_set))
    assert before <= after <= before + 1


def test_an_answer_is_found_by_its_pieces():
    assert answer_in_response("Brazil, China", "CHINA and Brazil agreed")
    assert not answer_in_response("Brazil, China", "China agreed")
    assert answer_in_response("1,500,000", '{"area": 1500000}')
    assert answer_in_response("1500000", "1,500,000 ha")
    assert answer_in_response("Paris,France", "parisfrance")  # no space: one piece, its comma gone
    assert not answer_in_response("37.9", "37 9")


def test_solve_rate_of_a_case_worked_by_hand():
    reference = Reference(sub_answers=(SubAnswer("a", "x"), SubAnswer("a", "x"), SubAnswer("b", "y")))
    first = rollout(
        turn(good("a", "x"), BAD),  # one response solves one of the two equal answers; the malformed call is no call
        turn(good("c", "y"), good("b", "no", error=True)),  # y from the wrong tool solves nothing
        turn(answer="y"),  # the final answer is not scored
    )
    metric = SolveRate()
    metric.update(first, reference)
    same(values(metric), {"solve_p": 1 / 3, "solve_r": 1 / 3, "solve_f1": 2 / 6})
    metric.update(rollout(turn(answer="y")), reference)  # no call: P = 1, R = F1 = 0
    same(values(metric), {"solve_p": 2 / 3, "solve_r": 1 / 6, "solve_f1": 1 / 6})
    metric.update(first, Reference(answer="y"))  # nothing is expected: not counted
    assert int(metric.count) == 2


def test_a_call_that_was_never_run_is_not_counted():
    cut = RolloutTurn("", parsed=(good("a")[0], good("a")[0]), responses=("x",), errors=(False,))
    metric = SolveRate()
    metric.update(rollout(cut, stop=StopReason.MAX_TOKENS_TURN), Reference(sub_answers=(SubAnswer("a", "x"),)))
    same(values(metric), {"solve_p": 1.0, "solve_r": 1.0, "solve_f1": 1.0})


def test_solve_scores_need_an_expected_answer():
    with pytest.raises(ValueError, match="without expected answers"):
        solve_scores(0, 1, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(call_lists, st.just({}) | unsolved_sets), max_size=6), st.integers(0, 6))
def test_solve_rate_is_the_mean_and_merges(samples, cut):
    updates = [
        (rollout(turn(*(good(tool, text) for tool, text in calls))), Reference(sub_answers=flat(unsolved)))
        for calls, unsolved in samples
    ]
    check_merge(SolveRate, updates, cut)
    metric = SolveRate()
    for update in updates:
        metric.update(*update)
    rows = [restated_scores(calls, unsolved) for calls, unsolved in samples if unsolved]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)] or [math.nan] * 3
    same(values(metric), dict(zip(("solve_p", "solve_r", "solve_f1"), means, strict=True)))


# --- Answer correctness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1,500,000", "1500000.00"),
        ("$1,000", "1000"),
        ("+3", "3"),
        (".5", "0.50"),
        ("-0", "0"),
        ("The Eiffel  Tower.", "eiffel tower"),
        ("Abdel Fattah el-Sisi.", "abdel fattah el sisi"),
        ("U.S.", "US"),
        ("Brazil, China", "brazil china"),
        ("Ｐａｒｉｓ", "paris"),
        ("12 apples!", "12.0 Apples"),
        ("'Yes'", "yes"),
    ],
)
def test_answers_that_are_the_same(left, right):
    assert answers_match(left, right)
    assert answers_match(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("3", "-3"),
        ("3.5", "35"),
        ("1.000", "1000"),
        ("5-6", "56"),
        ("12,34", "1234"),
        ("Paris", "Paris, France"),
        ("China Brazil", "Brazil China"),
        ("", "x"),
        ("", ""),
        ("the", "a"),
        ("yes", "no"),
    ],
)
def test_answers_that_are_not_the_same(left, right):
    assert not answers_match(left, right)
    assert not answers_match(right, left)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing_and_case_never_matters(text):
    once = normalise_answer(text)
    assert once == " ".join(once.split())
    assert normalise_answer(f"  {text}\n") == once
    assert answers_match(text, text) == bool(once)


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_a_number_is_its_value(number):
    assert answers_match(f"{number:,.4f}", f"{number:f}00")
    assert answers_match(f"{number:f}", f"{number + 1:f}") is False


def test_answer_correctness_of_a_case_worked_by_hand():
    metric = AnswerCorrectness()
    known = Reference(answer="2,850")
    metric.update(rollout(turn(answer="It is <answer>2850 </answer>")), known)  # right
    metric.update(rollout(turn(answer="<answer>2851</answer>")), known)  # wrong
    metric.update(rollout(turn(answer="2850")), known)  # right: without a tag the text is the answer
    metric.update(rollout(turn(good("a")), stop=StopReason.MAX_TURNS), known)  # no answer: wrong
    metric.update(rollout(turn(answer="<answer></answer>")), known)  # an empty answer is none
    metric.update(rollout(turn(answer="anything")), Reference())  # no reference: only its answering counts
    same(values(metric), {"answer_correct": 2 / 5, "answered": 4 / 6})


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["1", "2", ""]), st.sampled_from([None, "1", "2"])), max_size=6),
    st.integers(0, 6),
)
def test_answer_correctness_merges(samples, cut):
    updates = [(rollout(turn(answer=text)), Reference(answer=answer)) for text, answer in samples]
    check_merge(AnswerCorrectness, updates, cut)


# --- Tool use ---------------------------------------------------------------------------------------------------------


def test_tool_use_of_a_case_worked_by_hand():
    metric = ToolUse()
    metric.update(
        rollout(
            turn(good("a", x=1, y=2), good("a", y=2, x=1)),  # the same call twice
            turn(good("a", error=True, x=3), BAD),
            turn(answer="done"),
        ),
        ("a", "b"),
    )
    metric.update(rollout(turn(good("z", error=True)), stop=StopReason.MAX_TURNS), ("a", "b"))
    metric.update(rollout(turn(BAD), stop=StopReason.MAX_TURNS), ("a", "b"))
    metric.update(rollout(turn(answer="done")), ("a", "b"))
    expected = {
        "turns": 6 / 4,
        "calls": 4 / 4,
        "unique_calls": 3 / 4,
        "no_call": 2 / 4,
        "malformed_call": 2 / 4,
        "failed_call": 2 / 4,
        "unknown_tool": 1 / 4,
        "stop_answered": 2 / 4,
        "stop_max_turns": 2 / 4,
        "stop_max_tokens_turn": 0.0,
        "stop_max_tokens_trajectory": 0.0,
        "stop_environment_failed": 0.0,
    }
    same(values(metric), expected)


def test_calls_that_were_cut_off_before_they_ran_are_no_tool_use():
    metric = ToolUse()
    ran, never = turn(good("a", x=1)), RolloutTurn("", parsed=(good("z", x=1)[0],))
    metric.update(rollout(ran, never, stop=StopReason.MAX_TOKENS_TURN), ("a",))
    metric.update(rollout(never, stop=StopReason.MAX_TOKENS_TRAJECTORY), ("a",))
    found = values(metric)
    assert (found["calls"], found["unique_calls"], found["no_call"], found["unknown_tool"]) == (0.5, 0.5, 0.5, 0.0)
    assert found["turns"] == 1.5


entries = st.one_of(st.just(BAD), st.builds(good, tools, error=st.booleans(), x=st.integers(0, 1)))
rollouts = st.builds(
    lambda turns, stop: rollout(*(turn(*entries) for entries in turns), stop=stop),
    st.lists(st.lists(entries, max_size=3), max_size=3),
    st.sampled_from(StopReason),
)


@settings(deadline=None)
@given(st.lists(rollouts, max_size=6), st.integers(0, 6))
def test_tool_use_merges_and_its_parts_agree(samples, cut):
    check_merge(ToolUse, [(sample, {"a", "b"}) for sample in samples], cut)
    if samples:
        metric = ToolUse()
        for sample in samples:
            metric.update(sample, {"a", "b"})
        got = values(metric)
        assert sum(value for key, value in got.items() if key.startswith("stop_")) == pytest.approx(1)
        assert got["unique_calls"] <= got["calls"]
        assert (got["no_call"] == 1) == (got["calls"] == 0)


def test_the_states_are_summed_across_processes():
    for metric in (SolveRate(), AnswerCorrectness(), ToolUse()):
        assert metric._reductions
        stacked = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        for reduce in metric._reductions.values():
            assert torch.equal(reduce(stacked), torch.tensor([4.0, 6.0]))


def test_scores_of_single_rollouts_average_to_those_of_all_and_change_nothing():
    prompt = PromptView("t", ({"role": "user", "content": "?"},), (), EnvironmentSpec("none.Environment"))
    task, open_task = Task(prompt, Reference("4", (), (SubAnswer("a", "4"),))), Task(prompt, Reference(None, (), ()))
    right, wrong = rollout(turn(good("a", "4")), turn(answer="4")), rollout(turn(BAD), stop=StopReason.MAX_TURNS)
    metrics = EvaluationMetrics()
    singles = []
    for sample in (right, wrong):
        metrics.update(task, sample)
        singles.append(metrics.of_one(task, sample))
        metrics.of_one(open_task, sample)
    total = {name: value for name, value in metrics.compute().items() if not name.startswith("stop_")}
    assert singles[0].keys() == total.keys()
    assert {name: (singles[0][name] + singles[1][name]) / 2 for name in total} == pytest.approx(total)
    assert (singles[0]["answer_correct"], singles[1]["answer_correct"]) == (1.0, 0.0)
    assert "answer_correct" not in metrics.of_one(open_task, right)


def test_turn_rewards_are_summed_over_turns_and_averaged_over_rollouts():
    prompt = PromptView("t", ({"role": "user", "content": "?"},), (), EnvironmentSpec("none.Environment"))
    task = Task(prompt, Reference("4", (ToolCall(name="a", arguments={"x": 1}),), ()))
    right = rollout(turn(good("a", "4", x=1)), turn(answer="4"))  # 1 for the call, 1 for the answer
    silent = rollout(turn(answer="5"))
    metrics = EvaluationMetrics([TurnReward()])
    for sample in (right, silent):
        metrics.update(task, sample)
    assert metrics.of_one(task, right)["turn_reward"] == pytest.approx(2.0)
    assert metrics.of_one(task, silent)["turn_reward"] == pytest.approx(0.0)
    assert metrics.compute()["turn_reward"] == pytest.approx(1.0)
    unknown = Task(prompt, Reference(None, (), ()))
    metrics.update(unknown, right)
    assert metrics.compute()["turn_reward"] == pytest.approx(1.0)

"""ToolHop's scores, against its rules stated once more over plain messages, and against cases worked by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.credit.answers import answer_in_response
from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.tasks.toolhop.metric import ToolHopCorrectness, official_match
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory

# A metric that saw nothing says NaN; torchmetrics warns about that, and here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")

FAILED = "an error occured when call f: no"


def task(answer, kind="toolhop"):
    prompt = PromptView("t", ({"role": "user", "content": "?"},), (), EnvironmentSpec("a.B"))
    return Task(prompt, Reference(answer), kind=kind)


def calling(*responses, said=""):
    parsed = tuple(ParsedCall({"name": "f", "arguments": {}}) for _ in responses)
    return RolloutTurn("", parsed=parsed, responses=responses, errors=(False,) * len(responses))


def saying(text):
    return RolloutTurn("", answer=text)


def rollout(*turns, stop=StopReason.ANSWERED):
    return Trajectory("t", 0, (), turns=list(turns), stop_reason=stop)


def restated(answer, turns):
    """The rules over OpenAI messages, as the benchmark's authors state them in code; apart from the package's own."""
    messages = [("user", "?")]
    for turn in turns:
        messages.append(("assistant", turn.answer))
        messages += [("tool", response) for response in turn.responses]
    (role, content), (before, tool_text) = messages[-1], messages[-2] if len(messages) > 1 else ("", "")
    if role != "assistant" or not content:
        return False
    needle = answer.rstrip(".0").lower()
    if needle in content.rstrip(".0").replace(",", "").lower():
        return True
    return before == "tool" and needle in tool_text.rstrip(".0").replace(",", "").lower()


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("Danube", "the DANUBE flows", True),
        ("1920", "1920", True),
        ("1920", "In 1920.", True),
        ("1920", "1,920", True),
        ("1,920", "1,920", False),  # commas leave the text, not the answer
        ("100", "1", True),  # zeros at the end are cut off
        ("100", "21", True),
        ("3.0", "3", True),
        ("3.0", "about 3.0 km", True),
        ("2000-10-10", "2000-10-1", True),  # so is the zero of a date
        ("0", "anything", True),  # nothing is left of it
        ("10", "0.0", False),
        ("U.S.", "the u.s of a", True),
        ("12", "1.2", False),
    ],
)
def test_the_official_test_with_its_quirks(answer, text, found):
    assert official_match(answer, text) is found


def scores(rows=None, *played):
    metric = ToolHopCorrectness(rows)
    for turns, answer in played:
        metric.update(rollout(*turns), task(answer))
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("turns", "official", "ftrl"),
    [
        ([saying("It is 1,920.")], 1, 1),
        ([calling("1920"), saying("I do not know")], 1, 1),
        ([calling("1920", "1233"), saying("I do not know")], 0, 0),  # the message just before is the second response
        ([calling("1920"), calling("x"), saying("I do not know")], 0, 0),
        ([calling("1920")], 0, 0),  # it ends with a tool's message
        ([calling("1920"), saying("")], 0, 0),  # says nothing
        ([saying("192")], 1, 0),  # the official test cuts zeros off, the other does not
        ([], 0, 0),
    ],
)
def test_by_hand(turns, official, ftrl):
    got = scores(None, (turns, "1920"))
    assert (got["toolhop_correct"], got["toolhop_correct_ftrl"]) == (official, ftrl)
    assert restated("1920", turns) == bool(official)


def test_a_text_cut_off_by_a_limit_is_looked_at_as_upstream_does():
    metric = ToolHopCorrectness()
    metric.update(rollout(saying("It is 1920 and"), stop=StopReason.MAX_TOKENS_TURN), task("1920"))
    assert float(metric.compute()["toolhop_correct"]) == 1.0


texts = st.text(alphabet="0123.,aA ", max_size=6)
played_turns = st.lists(
    st.one_of(st.lists(texts, min_size=1, max_size=2).map(lambda r: calling(*r)), texts.map(saying)), max_size=4
)


@settings(max_examples=60)
@given(st.lists(st.tuples(played_turns, texts), min_size=1, max_size=5))
def test_shares_are_those_of_the_rules(played):
    got = scores(None, *played)
    assert got["toolhop_correct"] == pytest.approx(sum(restated(a, turns) for turns, a in played) / len(played))
    ftrl = 0
    for turns, answer in played:
        if turns and not turns[-1].parsed and turns[-1].answer:
            seen = [turns[-1].answer, *(turns[-2].responses[-1:] if len(turns) > 1 else ())]
            ftrl += any(answer_in_response(answer, text) for text in seen)
    assert got["toolhop_correct_ftrl"] == pytest.approx(ftrl / len(played))


def test_rows_never_rolled_out_are_wrong():
    assert scores(4, ([saying("a")], "a"))["toolhop_correct"] == 0.25
    with pytest.raises(ValueError, match="2 ToolHop rollouts were counted, but rows says that there are 1"):
        scores(1, ([saying("a")], "a"), ([saying("a")], "a"))
    with pytest.raises(ValueError, match="at least 1"):
        ToolHopCorrectness(0)


def test_invocation_errors_are_a_share_of_tool_messages():
    turns = [calling("1", FAILED), calling("There is no tool named 'g'."), calling(f"So: {FAILED}"), saying("x")]
    assert scores(None, (turns, "x"), ([calling(FAILED)], "x"))["toolhop_invocation_error"] == pytest.approx(2 / 5)
    assert math.isnan(scores(None, ([saying("x")], "x"))["toolhop_invocation_error"])


def test_only_toolhop_tasks_count_and_ranks_add_up():
    metric, other = ToolHopCorrectness(10), ToolHopCorrectness(10)
    assert isinstance(metric, RolloutMetric)
    metric.update(rollout(saying("a")), task("a", kind="self/multi_hop"))
    metric.update(rollout(saying("a")), task(None))
    assert all(math.isnan(float(value)) for value in metric.compute().values())
    metric.update(rollout(saying("a")), task("a"))
    other.update(rollout(calling(FAILED), saying("b")), task("b"))
    metric.merge_state(other)
    values = {name: float(value) for name, value in metric.compute().items()}
    expected = {"toolhop_correct": 0.2, "toolhop_correct_ftrl": 0.2, "toolhop_invocation_error": 1.0}
    assert values == pytest.approx(expected)

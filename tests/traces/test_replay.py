"""Verification by replay, on the bundled world and on sandboxed code: what is kept, what is dropped, and why."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.traces.replay import EnvironmentFailedError, per_turn, replay_calls, same_response, with_responses
from pact_lightning.traces.verdict import verified_task
from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.types.task import Reference
from pact_lightning.types.trace import ExpertTurn, flatten_calls

TASKS = BundledTasks("validation", 12).load()
TASK = next(task for task in TASKS if len(task.trace.turns) > 1)


def verify_task(task, **how):
    return verified_task(task, **how)[1]


def with_turn(task, index, **changes):
    turns = list(task.trace.turns)
    turns[index] = replace(turns[index], **changes)
    return replace(task, trace=replace(task.trace, turns=tuple(turns)))


def without_final(task):
    return replace(task, trace=replace(task.trace, final=None))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_sound_experts_replay_exactly(task):
    verdict = verify_task(task)
    calls = len(flatten_calls(task.trace.turns))
    assert (verdict.kept, verdict.reason) == (True, "final answer verifies")
    assert verdict.agreement == (calls, 0, 0)
    q, n = len(task.reference.sub_answers), len(task.reference.sub_answers)
    assert verdict.solve_f1 == pytest.approx(2 * q / (calls + n))


def test_the_rule_of_the_paper():
    assert verify_task(without_final(TASK)).reason == "last tool response verifies"
    wrong = ExpertTurn((), answer="<answer>nonsense</answer>")
    both = replace(TASK, trace=replace(TASK.trace, final=wrong))
    assert verify_task(both).reason == "last tool response verifies", "either of the two is enough"
    elsewhere = replace(both, reference=Reference("unheard of"))
    verdict = verify_task(elsewhere)
    assert (verdict.kept, verdict.reason) == (False, "neither the final answer nor the last tool response verifies")
    assert verify_task(replace(TASK, reference=Reference())).reason == "no reference answer"
    assert verify_task(replace(TASK, reference=Reference("  "))).reason == "no reference answer", (
        "'' is in any response"
    )
    assert verify_task(replace(TASK, trace=None)).reason == "no trace"


def test_sub_answers_verify_where_the_answer_does_not():
    reference = replace(TASK.reference, answer="unheard of")
    assert verify_task(replace(TASK, reference=reference)).reason == "sub-answers are all solved"
    lost = replace(reference, sub_answers=(*reference.sub_answers, reference.sub_answers[0]))
    verdict = verify_task(replace(TASK, reference=lost))
    assert (verdict.kept, verdict.reason) == (False, "sub-answers are unsolved")
    assert verdict.solve_f1 < 1


def test_the_papers_filters():
    unknown = with_turn(TASK, 0, calls=({"name": "no_such_tool", "arguments": {}},) * len(TASK.trace.turns[0].calls))
    assert verify_task(unknown).reason == "unknown tool"
    texts = TASK.trace.turns[0].responses
    for text, reason in (("</tool_call>", "control tag in a response"), ("x\nUser: hi", "role text in a response")):
        assert verify_task(with_turn(TASK, 0, responses=(text, *texts[1:]))).reason == reason


def test_a_response_that_the_environment_does_not_give():
    first = TASK.trace.turns[0]
    made_up = with_turn(TASK, 0, responses=("made up", *first.responses[1:]))
    verdict = verify_task(made_up)
    assert (verdict.kept, verdict.reason) == (False, "response differs on replay")
    assert verdict.agreement[2] == 1
    assert first.calls[0]["name"] in verdict.text
    assert "'made up'" in verdict.text
    assert verify_task(made_up, on_mismatch="replace").kept
    replay = replay_calls(made_up.prompt, flatten_calls(made_up.trace.turns))
    assert with_responses(made_up.trace, replay) == TASK.trace
    assert [len(results) for results in per_turn(TASK.trace, replay)] == [len(turn.calls) for turn in TASK.trace.turns]


def test_replaced_responses_pass_the_filters_too():
    texts = TASK.trace.turns[0].responses
    tagged = with_turn(TASK, 0, responses=("</tool_call>", *texts[1:]))
    assert verify_task(tagged, on_mismatch="replace").kept, "the tag is gone with the response"


@pytest.mark.parametrize(
    ("one", "other", "agreement"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1.0}', "json"),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', "differs"),
        ("1", "true", "differs"),
        ('{"a": 0}', '{"a": false}', "differs"),
        ("a  b\n", "a b", "json"),
        ("a", "b", "differs"),
        ("[" * 100_000, "[", "differs"),
        ('"a"', "a", "differs"),
    ],
)
def test_what_counts_as_the_same(one, other, agreement):
    assert same_response(one, other) == same_response(other, one) == agreement


@given(text=st.text())
def test_a_response_is_the_same_as_itself(text):
    assert same_response(text, text) == "exact"


class Temperamental:
    """Raises, ends the process, hangs, lies about its type, and has a reward."""

    closed = 0

    def __init__(self, reward=1.0):
        self.worth = reward
        self.tools = []

    def reset(self, task, seed):
        if self.worth is None:
            raise OSError("no such world")

    def call(self, name, arguments):
        if name == "raise":
            raise KeyError("lost")
        if name == "exit":
            raise SystemExit(3)
        if name == "hang":
            import threading

            threading.Event().wait(30)
        return "no result" if name == "lie" else ToolResult("fine")

    def reward(self):
        if self.worth == "broken":
            raise ValueError("no reward")
        return self.worth

    def close(self):
        Temperamental.closed += 1


def temperamental(**init_args):
    return replace(TASK.prompt, environment=EnvironmentSpec("test_replay.Temperamental", init_args))


def test_tools_that_misbehave_are_failed_calls():
    calls = [{"name": name, "arguments": {}} for name in ("raise", "exit", "lie", "fine", "hang")]
    before = Temperamental.closed
    replay = replay_calls(temperamental(), calls[:4])
    assert [result.error for result in replay.results] == [True, True, True, False]
    assert replay.results[0].text == "The tool failed: KeyError: 'lost'", "as a rollout would read it"
    assert (replay.reward, Temperamental.closed) == (1.0, before + 1)
    hung = replay_calls(temperamental(), calls[3:], timeout_s=0.2)
    assert "did not answer within 0.2 seconds" in hung.results[1].text
    assert replay_calls(temperamental(reward="broken"), []).reward is None


def test_an_environment_with_a_call_that_was_given_up_is_left_open_and_the_rest_goes_on(caplog):
    before = Temperamental.closed
    replay_calls(temperamental(), [{"name": "hang", "arguments": {}}], timeout_s=0.2)
    assert "a call that was given up still runs in it" in caplog.text
    assert Temperamental.closed == before


async def sleeper() -> str:
    """Sleeps for a minute."""
    await asyncio.sleep(60)
    return "awake"


def test_an_async_tool_that_hangs_is_a_failed_call():
    spec = EnvironmentSpec("pact_lightning.FunctionEnvironment", {"functions": [f"{__name__}.sleeper"]})
    prompt = replace(TASK.prompt, environment=spec)
    spec.build()  # the first import of transformers takes longer than the call may
    replay = replay_calls(prompt, [{"name": "sleeper", "arguments": {}}], timeout_s=0.2)
    assert "did not answer within 0.2 seconds" in replay.results[0].text


def test_the_environments_own_reward_where_nothing_else_is_known():
    for reward, kept in ((1.0, True), (0.5, False)):
        prompt = temperamental(reward=reward)
        fine = ExpertTurn((), ({"name": "fine", "arguments": {}},), ("fine",))
        tools = ({"type": "function", "function": {"name": "fine", "parameters": {}}},)
        task = replace(TASK, prompt=replace(prompt, tools=tools), reference=Reference())
        assert verify_task(replace(task, trace=replace(TASK.trace, turns=(fine,)))).kept is kept


def test_an_environment_that_cannot_start():
    with pytest.raises(EnvironmentFailedError, match="failed: OSError: no such world"):
        replay_calls(temperamental(reward=None), [])
    with pytest.raises(ImportError, match="cannot be imported"):
        replay_calls(replace(TASK.prompt, environment=EnvironmentSpec("no.such.Class")), [])

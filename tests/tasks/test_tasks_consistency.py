"""Whether environment, reference and trace of a task fit one another."""

import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.consistency import EnvironmentChecks, replay_mistakes, trace_mistakes
from pact_lightning.tasks.ftrl.tasks import known_calls
from pact_lightning.tasks.importing import replay_reference
from pact_lightning.traces.replay import EnvironmentFailedError
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn

TOOL = {"type": "function", "function": {"name": "echo", "parameters": {"type": "object"}}}


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError


class Echo:
    """Says what it is told, and counts how often it was closed."""

    closed = 0
    tools = (TOOL,)

    def __init__(self, broken=""):
        if broken == "init":
            raise RuntimeError("no such shop")
        if broken == "exit":
            raise SystemExit(3)
        self.broken = broken
        self.open = True

    def reset(self, task, seed):
        if self.broken == "reset":
            raise RuntimeError("no shelf")

    def call(self, name, arguments):
        assert self.open
        if arguments["what"] == "raise":
            raise KeyError("what")
        if arguments["what"] == "sleep":
            time.sleep(5)
        return "bare text" if arguments["what"] == "bare" else ToolResult(arguments["what"])

    def close(self):
        if self.broken == "close":
            raise MuteError
        type(self).closed += 1
        self.open = False


def call(what):
    return {"name": "echo", "arguments": {"what": what}}


def turn(*said, chunks=()):
    """A turn that asks for each first word and is said to have got the second."""
    return ExpertTurn(chunks, tuple(call(what) for what, _ in said), tuple(got for _, got in said))


def task(*turns, final=None, reference=Reference(), class_path="Echo", **init_args):  # noqa: B008  # frozen
    spec = EnvironmentSpec(f"{__name__}.{class_path}", init_args)
    prompt = PromptView("t", ({"role": "user", "content": "?"},), (TOOL,), spec)
    answer = None if final is None else ExpertTurn((), answer=final)
    return Task(prompt, reference, ExpertTrace(turns, answer) if turns else None)


def told(mistakes):
    return [(mistake.field, mistake.problem) for mistake in mistakes]


@pytest.mark.parametrize("index", range(8))
def test_bundled_tasks_are_consistent_and_replay(index):
    sound = make_task("train", index)
    assert trace_mistakes(sound) == []
    assert EnvironmentChecks().mistake(sound) is None
    assert replay_mistakes(sound) == []
    other = replace(sound.reference, answer="somewhere else")
    assert [field for field, _ in told(trace_mistakes(replace(sound, reference=other)))] == ["trace.final.answer"]


def test_a_trace_must_end_where_the_reference_does():
    answer = Reference("800")
    assert trace_mistakes(task(turn(("x", "it is 800")), reference=answer)) == []
    assert trace_mistakes(task(turn(("x", "y")), final="<answer>800.0</answer>", reference=answer)) == []
    assert told(trace_mistakes(task(turn(("x", "y")), final="<answer>80</answer>", reference=answer))) == [
        ("trace.final.answer", "is '80', but reference.answer is '800'")
    ]
    assert told(trace_mistakes(task(turn(("x", "800")), turn(("x", "y")), reference=answer))) == [
        ("trace.turns", "there is no final answer, and the last response does not contain reference.answer '800'")
    ]
    assert trace_mistakes(task(reference=answer)) == []


def test_a_trace_must_find_every_sub_answer():
    reference = Reference(sub_answers=(SubAnswer("echo", "Danube"), SubAnswer("echo", "2,850")))
    assert trace_mistakes(task(turn(("x", "2850"), ("x", "danube")), reference=reference)) == []
    assert told(trace_mistakes(task(turn(("x", "danube and 2850")), reference=reference))) == [
        ("trace.turns", "no response contains the expected '2,850' of echo")
    ]
    elsewhere = replace(reference, answer="Vienna")
    assert trace_mistakes(task(turn(("x", "2850"), ("x", "danube")), reference=elsewhere)) == [], (
        "as verification has it"
    )


def test_a_last_response_that_is_the_answer_in_other_digits():
    assert trace_mistakes(task(turn(("x", '{"length": 800}')), reference=Reference("800.0"))) == []


def test_leaks_and_tags_are_mistakes():
    leaking = turn(("x", "y"), chunks=(Chunk("So <answer>5</answer>. "),))
    tagged = turn(("x", "</tool_response>"))
    problems = [problem for field, problem in told(trace_mistakes(task(leaking, tagged))) if field == "trace"]
    assert problems == [
        "Turn 1: response 0 holds the control tag '</tool_response>'.",
        "Turn 0: the reasoning holds an <answer> tag.",
    ]


@pytest.mark.parametrize(
    ("arguments", "field", "problem"),
    [
        ({"class_path": "Nothing"}, "environment.class_path", "Nothing' cannot be imported: module "),
        ({"broken": "init"}, "environment.init_args", "cannot be created: RuntimeError: no such shop"),
        ({"x": 1}, "environment.init_args", "cannot be created: TypeError"),
        ({"broken": "exit"}, "environment.init_args", "cannot be created: SystemExit: 3"),
        ({"broken": "close"}, "environment.class_path", "close() of the environment "),
    ],
)
def test_an_environment_that_cannot_be_made(arguments, field, problem):
    mistake = EnvironmentChecks().mistake(task(**arguments))
    assert mistake.field == field
    assert problem in mistake.problem


def test_replay_compares_every_response():
    closed = Echo.closed
    played = task(turn(("a", "a"), ("b", "c")), turn(("raise", "x"), ("bare", "x"), ("d", "d")))
    *rest, (field, problem) = told(replay_mistakes(played))
    assert rest == [
        ("trace.turns[0].responses[1]", "is 'c', but the tool gives 'b'"),
        ("trace.turns[1].responses[0]", "is 'x', but the tool gives \"The tool failed: KeyError: 'what'\""),
    ]
    assert field == "trace.turns[1].responses[1]"
    assert "must return a ToolResult" in problem
    assert Echo.closed == closed + 1
    assert replay_mistakes(task()) == []
    ((_, problem),) = told(replay_mistakes(task(turn(("x" * 200 + "0", "x" * 200 + "1")))))
    assert problem.endswith("x1', but the tool gives '..." + "x" * 40 + "0'")
    as_verified = turn(("raise", "The tool failed: KeyError: 'what'"), ('{"a": 1, "b": 2}', '{"b":2,"a":1.0}'))
    assert replay_mistakes(task(as_verified)) == [], "failures and JSON are compared as verification does"
    assert told(replay_mistakes(task(turn(("a", "a")), broken="reset"))) == [
        ("environment", f"environment {__name__}.Echo of task t failed: RuntimeError: no shelf")
    ]


def test_a_tool_that_hangs_is_told_and_waited_for_no_longer():
    found = told(replay_mistakes(task(turn(("sleep", "x"), ("a", "a"))), timeout_s=0.1))
    assert [field for field, _ in found] == ["trace.turns[0].responses[0]", "trace.turns[0].responses[1]"]
    assert "The tool did not answer within 0.1 seconds." in found[0][1]
    assert "Not run" in found[1][1]


@pytest.mark.parametrize("broken", ["", "reset"])
def test_whoever_makes_an_environment_closes_it(broken):
    asked = task(turn(("a", "a")), reference=Reference(calls=(call("a"),)), broken=broken)
    asked = replace(asked, metadata={"index": 0})
    closed = Echo.closed
    mistakes = [field for field, _ in told(replay_mistakes(asked))]
    assert (mistakes, Echo.closed) == (["environment"] if broken else [], closed + 1)
    for number, replay in enumerate((known_calls, replay_reference), start=2):
        with pytest.raises(EnvironmentFailedError, match="no shelf") if broken else nullcontext():
            replay(replace(asked, trace=None))
        assert Echo.closed == closed + number

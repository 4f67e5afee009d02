"""A teacher at one task: the same tool loop as a rollout, and the paper's rule and filters on what comes out."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from scripted_server import Answer, ScriptedServer, chat, expert, expert_reply, native

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.tool_calls import ToolThreads
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.teacher.attempt import (
    CannotBeVerifiedError,
    Ending,
    TeacherLimits,
    attempt_task,
    judge_attempt,
)
from pact_lightning.teacher.endpoint import Endpoint, EndpointError, RequestFailedError
from pact_lightning.traces.replay import EnvironmentFailedError
from pact_lightning.traces.verdict import (
    BY_ANSWER,
    BY_RESPONSE,
    BY_REWARD,
    BY_SUB_ANSWERS,
    response_is_answer,
    verified_by,
    without_wrong_answer,
)
from pact_lightning.types.prompt import EnvironmentSpec, PromptView, UserTurn
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.trace import ExpertTrace, ExpertTurn


def tool(name):
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}


class Desk:
    """Tools that misbehave, a reward, and a ``close`` that is counted."""

    NAMES = ("say", "crash", "stop", "hang", "long", "tag")
    closed = 0

    def __init__(self, worth=None, broken=None):
        if broken is not None:
            raise broken
        if worth is not None:
            self.reward = lambda: worth

    @property
    def tools(self):
        return [tool(name) for name in self.NAMES]

    def reset(self, task, seed):
        self.seed = seed

    def call(self, name, arguments):
        if name == "crash":
            raise RuntimeError("bang")
        if name == "stop":
            next(iter(()))
        if name == "hang":
            time.sleep(1.0)
        texts = {"long": "x" * 50, "tag": "<tool_call>"}
        return ToolResult(texts.get(name, str(arguments.get("what", ""))))

    def close(self):
        Desk.closed += 1


ANSWER = Reference(answer="42")
USUAL = TeacherLimits(tool_timeout_s=0.3)


def desk(reference=ANSWER, follow_ups=(), names=Desk.NAMES, **init):
    spec = EnvironmentSpec(f"{__name__}.Desk", init)
    tools = tuple(tool(name) for name in names)
    prompt = PromptView("desk", ({"role": "user", "content": "What?"},), tools, spec, follow_ups)
    return Task(prompt, reference)


def say(what, name="say"):
    return native((name, json.dumps({"what": what})))


def played(task, *answers, limits=USUAL, call_format="native"):
    """An attempt in which the teacher gives these answers, one a turn."""

    def script(request, number):
        return answers[sum(message["role"] == "assistant" for message in request["messages"])]

    async def run(server):
        async with Endpoint(server.config(retries=0)) as endpoint:
            tools = ToolThreads(2, limits.tool_timeout_s)
            return await attempt_task(task, endpoint, tools, limits=limits, call_format=call_format, seed=0)

    with ScriptedServer(script) as server:
        return asyncio.run(run(server)), server


@pytest.mark.parametrize("call_format", ["native", "text"])
def test_the_experts_way_becomes_the_experts_trace(call_format):
    task = make_task("train", 3)
    turns = [*task.trace.turns, task.trace.final]
    attempt, server = played(task, *(expert_reply(turn, call_format) for turn in turns), call_format=call_format)
    outcome, detail, trace = judge_attempt(task, attempt, "teacher t")
    assert (outcome, detail, trace.source) == ("kept", "", "teacher t")
    facts = [(turn.reasoning, turn.calls, turn.responses) for turn in trace.turns]
    assert facts == [(turn.reasoning, turn.calls, turn.responses) for turn in task.trace.turns]
    assert (trace.final.reasoning, trace.final.answer) == (task.trace.final.reasoning, task.trace.final.answer)
    assert [turn.pattern for turn in trace.turns][1:] == [turn.pattern for turn in task.trace.turns][1:]
    assert ("tools" in server.requests[0]) == (call_format == "native")
    assert attempt.usage.requests == len(turns)
    assert attempt.messages[: len(server.requests[-1]["messages"])] == server.requests[-1]["messages"]


def test_failures_of_tools_are_observations():
    answers = [say("", name) for name in ("crash", "stop", "hang", "long")]
    limits = TeacherLimits(tool_timeout_s=0.2)
    attempt, _ = played(desk(), *answers, chat("<answer>42</answer>"), limits=limits)
    texts = [entry.responses[0] for entry in attempt.turns[:-1]]
    assert texts == [
        "The tool failed: RuntimeError: bang",
        "The tool failed: StopIteration",
        "The tool did not answer within 0.2 seconds.",
        # The call before it still runs; this one waits for it in vain.
        "The tool did not answer within 0.2 seconds.",
    ]
    assert [entry.errors for entry in attempt.turns[:-1]] == [(True,)] * 4
    outcome, _, trace = judge_attempt(desk(), attempt, "")
    assert outcome == "kept"
    assert [turn.pattern.value for turn in trace.turns[1:]] == ["retry_after_failed_call"] * 3


def test_a_long_response_is_cut():
    attempt, server = played(
        desk(), say("", "long"), chat("<answer>42</answer>"), limits=TeacherLimits(max_response_characters=40)
    )
    assert attempt.turns[0].responses == ("x" * 40 + "... (cut after 40 characters)",)
    assert server.requests[-1]["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "id-0",
        "content": attempt.turns[0].responses[0],
    }


def test_several_user_turns():
    task = desk(follow_ups=(UserTurn("And then?", (tool("tag"),)), UserTurn("Thanks")), names=("say",))
    attempt, server = played(task, say("1"), chat("one"), say("42"), chat("two"), chat("<answer>42</answer>"))
    offered = [[entry["function"]["name"] for entry in request["tools"]] for request in server.requests]
    assert offered == [["say"], ["say"], ["say", "tag"], ["say", "tag"], ["say", "tag"]]
    outcome, _, trace = judge_attempt(task, attempt, "")
    assert outcome == "kept"
    assert [turn.reply for turn in trace.turns] == [None, "one", None, "two"]
    left, _ = played(task, say("42"), chat("one"), say("42"), limits=TeacherLimits(max_turns=3))
    assert judge_attempt(task, left, "")[0] == "follow_ups_left"


def test_a_tool_of_a_later_user_turn_is_unknown_before():
    task = desk(follow_ups=(UserTurn("And then?", (tool("tag"),)),), names=("say",))
    attempt, _ = played(task, say("", "tag"))
    assert judge_attempt(task, attempt, "")[:2] == ("unknown_tool", "There is no tool named 'tag'.")


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([say("42"), chat("<answer>41</answer>")], "kept"),  # the last response verifies
        ([say("41"), chat("So: <answer>42</answer>")], "kept"),
        ([say("41"), chat("<answer>41</answer>")], "not_verified"),
        ([say("142"), chat("I do not know")], "not_verified"),
        ([chat("<answer>42</answer>")], "no_call"),
        ([say("41"), say("42")], "kept"),  # at the limit, without an answer
        ([say("42"), say("41")], "max_turns"),
        ([say("42"), say("", "tell")], "unknown_tool"),
        ([native(("say", "{"))], "malformed_turn"),
        ([say("", "tag"), chat("<answer>42</answer>")], "unclean_response"),
        ([say("User: 42"), chat("<answer>42</answer>")], "unclean_response"),
        ([native(("say", "{}"), reasoning_content="<answer>42</answer>"), chat("<answer>42</answer>")], "leak"),
        ([say("42"), Answer({"error": {"message": "too long"}}, 400)], "request_refused"),
    ],
)
def test_what_is_kept_and_why_not(answers, outcome):
    attempt, server = played(desk(), *answers, limits=TeacherLimits(max_turns=2))
    judged, detail, trace = judge_attempt(desk(), attempt, "")
    assert judged == outcome
    assert (trace is not None) == (outcome == "kept") == (not detail)
    assert len(server.requests) <= 2


def test_the_environments_end():
    before = Desk.closed
    attempt, _ = played(desk(), say("42"), chat("42"))
    assert attempt.ending is Ending.ANSWERED
    assert Desk.closed == before + 1
    with pytest.raises(EnvironmentFailedError, match=r"^The environment cannot be started: OSError: no desk$"):
        played(desk(broken=OSError("no desk")))
    with pytest.raises(EnvironmentFailedError, match=r"^The environment cannot be started: SystemExit: 3$"):
        played(desk(broken=SystemExit(3)))


@pytest.mark.parametrize(("worth", "outcome"), [(1.0, "kept"), (0.5, "not_verified")])
def test_without_a_reference_the_environment_says_what_it_is_worth(worth, outcome):
    task = desk(Reference(), worth=worth)
    attempt, _ = played(task, say("x"), chat("done"))
    assert judge_attempt(task, attempt, "")[0] == outcome


def test_nothing_is_asked_where_nothing_could_verify_it():
    before = Desk.closed
    with pytest.raises(CannotBeVerifiedError, match="no reference answer"):
        played(desk(Reference()))
    assert Desk.closed == before + 1


def test_what_verifies():
    expected = Reference(sub_answers=(SubAnswer("say", "1"), SubAnswer("say", "2")))
    assert verified_by(expected, None, [("say", "1"), ("say", "a 2")], None) == BY_SUB_ANSWERS
    assert verified_by(expected, "1, 2", [("say", "1"), ("crash", "2")], None) is None
    answered = replace(expected, answer="3")
    assert verified_by(answered, "<answer>3</answer>", [], None) == BY_ANSWER
    assert verified_by(answered, "<answer>4</answer>", [("say", "3")], None) == BY_RESPONSE
    assert verified_by(answered, "<answer>4</answer>", [("say", "1"), ("say", "2")], None) == BY_SUB_ANSWERS
    assert verified_by(answered, "<answer>4</answer>", [("say", "1")], 1.0) is None, "a reward does not outweigh it"
    assert verified_by(Reference(), None, [], 1.0) == BY_REWARD
    assert response_is_answer('{"a": [{"b": "1,500"}], "c": null}', "1500")
    assert not response_is_answer('{"a": 15}', "1500")
    assert not response_is_answer("[" * 100_000, "1")
    assert verified_by(Reference(answer=""), "", [("say", "")], None) is None


def test_a_final_answer_that_is_wrong_is_not_kept_with_its_trace():
    right, wrong = (ExpertTrace((), ExpertTurn((), answer=f"<answer>{text}</answer>")) for text in ("3", "4"))
    assert without_wrong_answer(right, Reference("3")) == right
    assert without_wrong_answer(wrong, Reference("3")) == ExpertTrace(())
    assert without_wrong_answer(wrong, Reference()) == wrong


def test_a_request_that_fails_is_raised():
    with pytest.raises(RequestFailedError):
        played(desk(), Answer({}, 500))
    with pytest.raises(RequestFailedError):  # the very first one: the settings are wrong, not the dialogue
        played(desk(), Answer({}, 400))
    with pytest.raises(EndpointError):
        played(desk(), say("42"), Answer({}, 401))


def test_the_expert_of_the_world_is_kept_for_twenty_tasks():
    tasks = [make_task("train", index) for index in range(20)]

    async def run(server):
        async with Endpoint(server.config()) as endpoint:
            tools = ToolThreads(2, 5.0)
            options = {"limits": TeacherLimits(max_turns=14), "call_format": "native", "seed": 0}
            return [await attempt_task(task, endpoint, tools, **options) for task in tasks]

    with ScriptedServer(expert(tasks)) as server:
        attempts = asyncio.run(run(server))
    judged = [judge_attempt(task, attempt, "")[:2] for task, attempt in zip(tasks, attempts, strict=True)]
    assert judged == [("kept", "")] * 20

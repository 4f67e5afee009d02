"""Verification by replay: runs a trace's calls in its task's environment and judges the trace (METHOD section 6).

The rule [P]: a trace is kept if its final answer or its last tool response verifies against the reference; it is
dropped for unknown tools, malformed turns, and role text or tool-call tags in responses. What "verifies" means is said
by :func:`~pact_lightning.traces.verification.verified_by`; responses are the replayed ones.

A trace whose recorded responses are not what the environment says is dropped too [D]: its reasoning speaks of things
that the policy will never see.
"""

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.metrics.solve import open_answers, solve_scores
from pact_lightning.rollout.tool_calls import closing_verbs, failure, run_tool
from pact_lightning.rollout.tool_threads import ToolFunction, ToolThreads, ToolTimeoutError
from pact_lightning.tasks.prompt import PromptView
from pact_lightning.tasks.schema import Reference, Task
from pact_lightning.traces.leak import trace_problems
from pact_lightning.traces.schema import ExpertTrace, flatten_calls
from pact_lightning.traces.verification import verified_by

_log = logging.getLogger(__name__)

Agreement = Literal["exact", "json", "differs"]
OnMismatch = Literal["drop", "replace"]


@dataclass(frozen=True, slots=True)
class Replay:
    """What the environment answered.

    Attributes:
        results: One per call, in order.
        reward: The environment's own reward after the last call, where it gives one.
    """

    results: tuple[ToolResult, ...]
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What replay says of a trace.

    Attributes:
        kept: Whether to train on it.
        reason: By what it verifies, or why it is dropped; a short name by which verdicts are counted.
        text: More, in one sentence; may be empty.
        agreement: How many responses agree exactly, as JSON, or differ.
        solve_f1: Solve-F1 of the replayed calls, for a task with sub-answers.
    """

    kept: bool
    reason: str
    text: str = ""
    agreement: tuple[int, int, int] = (0, 0, 0)
    solve_f1: float | None = None


def replay_calls(prompt: PromptView, calls: Sequence[ToolCall], *, timeout_s: float = 30.0, seed: int = 0) -> Replay:
    """Runs calls one after the other in a fresh environment.

    Args:
        prompt: Whose environment.
        calls: The calls, in order.
        timeout_s: Seconds that one call may take. A call that takes longer, or raises, has failed, as in a rollout.
        seed: What the environment is reset with.

    Returns:
        A result per call.

    Raises:
        ImportError: The environment cannot be imported.
        EnvironmentFailedError: It cannot be made or reset.
    """
    environment = _started(prompt, seed)
    threads, busy = ToolThreads(1, timeout_s), threading.Lock()
    runs: list[ToolFunction] = [partial(run_tool, environment, call) for call in calls]
    futures = threads.submit(busy, runs) if runs else []
    results = tuple(_result(future) for future in futures)
    return Replay(results, _closed(environment, threads, busy))


class EnvironmentFailedError(ValueError):
    """A task's environment cannot be made or reset."""


def same_response(recorded: str, replayed: str) -> Agreement:
    """How far two responses agree: exactly, up to white space and JSON's notation (order of keys, 2 and 2.0), or not.

    >>> same_response('{"a": 1, "b": [2]}', '{"b":[2.0],"a":1}'), same_response("1", "true"), same_response("a", "a")
    ('json', 'differs', 'exact')
    """
    if recorded == replayed:
        return "exact"
    try:
        values = json.loads(recorded), json.loads(replayed)
        return "json" if _normal(values[0]) == _normal(values[1]) else "differs"
    except (ValueError, RecursionError):
        return "json" if recorded.split() == replayed.split() else "differs"


def judge(task: Task, trace: ExpertTrace, replay: Replay, *, on_mismatch: OnMismatch = "drop") -> Verdict:
    """Whether a trace is kept.

    Args:
        task: Its task.
        trace: The trace.
        replay: What the environment answered to the trace's calls.
        on_mismatch: ``drop``: a trace whose recorded responses differ from the replayed ones is dropped. ``replace``:
            it is judged with the replayed ones in their place; see :func:`with_responses`.

    Returns:
        The verdict.
    """
    calls = flatten_calls(trace.turns)
    recorded = [response for turn in trace.turns for response in turn.responses]
    replayed = [result.text for result in replay.results]
    kinds = [same_response(one, other) for one, other in zip(recorded, replayed, strict=True)]
    agreement = (kinds.count("exact"), kinds.count("json"), kinds.count("differs"))
    solve_f1 = _solve_f1(calls, replayed, task.reference)
    if on_mismatch == "replace":
        trace = with_responses(trace, replay)
    problems = trace_problems(trace, task.prompt.tool_names)
    if problems:
        return Verdict(False, _filter_name(problems[0]), problems[0], agreement, solve_f1)
    if "differs" in kinds and on_mismatch == "drop":
        at = kinds.index("differs")
        text = f"Call {at} ({calls[at]['name']}): recorded {_short(recorded[at])}, replayed {_short(replayed[at])}."
        return Verdict(False, "response differs on replay", text, agreement, solve_f1)
    kept, reason = _verified(trace, calls, replayed, replay.reward, task.reference)
    return Verdict(kept, reason, "", agreement, solve_f1)


def per_turn(trace: ExpertTrace, replay: Replay) -> list[tuple[ToolResult, ...]]:
    """The replayed results of each turn."""
    results = iter(replay.results)
    return [tuple(islice(results, len(turn.calls))) for turn in trace.turns]


def with_responses(trace: ExpertTrace, replay: Replay) -> ExpertTrace:
    """The trace with what the environment answered in place of its own responses."""
    turns = zip(trace.turns, per_turn(trace, replay), strict=True)
    return replace(
        trace, turns=tuple(replace(turn, responses=tuple(one.text for one in results)) for turn, results in turns)
    )


def verify_task(task: Task, *, on_mismatch: OnMismatch = "drop", timeout_s: float = 30.0) -> Verdict:
    """Replays and judges a task's trace; see :func:`judge`.

    Raises:
        ImportError: The environment cannot be imported.
        EnvironmentFailedError: It cannot be made or reset.
    """
    if task.trace is None:
        return Verdict(False, "no trace")
    replay = replay_calls(task.prompt, flatten_calls(task.trace.turns), timeout_s=timeout_s)
    return judge(task, task.trace, replay, on_mismatch=on_mismatch)


def _started(prompt: PromptView, seed: int) -> Environment:
    try:
        environment: Environment = prompt.environment.build()
        environment.reset(prompt, seed)
    except ImportError:
        raise
    except Exception as error:
        # An environment is the user's code: whatever it raises is told as its own failure.
        problem = f"environment {prompt.environment.class_path} of task {prompt.id} failed: {type(error).__name__}"
        raise EnvironmentFailedError(f"{problem}: {error}") from error
    return environment


def _closed(environment: Environment, threads: ToolThreads, busy: threading.Lock) -> float | None:
    """Takes the environment's own reward, where it gives one, and lets it clean up."""
    verbs = closing_verbs(environment)
    reward: float | None = None
    for future in threads.submit(busy, verbs) if verbs else []:
        error = future.exception()
        if error is not None:
            _log.warning("the environment %s failed after a replay: %r", type(environment).__name__, error)
        elif future.result() is not None:
            reward = future.result()
    return reward


def _result(future: Future[Any]) -> ToolResult:
    # Asked for and not raised: what a tool raises, sys.exit() included, must not stop the replay.
    error = future.exception()
    if isinstance(error, ToolTimeoutError):
        return ToolResult(str(error), error=True)
    result: ToolResult = failure(error) if error is not None else future.result()
    return result


def _verified(
    trace: ExpertTrace, calls: Sequence[ToolCall], responses: Sequence[str], reward: float | None, reference: Reference
) -> tuple[bool, str]:
    final = None if trace.final is None else trace.final.answer
    found = verified_by(reference, final, _named(calls, responses), reward)
    if found is not None:
        return True, found
    if reference.sub_answers:
        return False, "sub-answers are unsolved"
    if (reference.answer or "").strip():
        return False, "neither the final answer nor the last tool response verifies"
    return False, "no reference answer" if reward is None else "environment's reward is below 1"


def _solve_f1(calls: Sequence[ToolCall], responses: Sequence[str], reference: Reference) -> float | None:
    expected = len(reference.sub_answers)
    if not expected:
        return None
    solved = expected - len(open_answers(_named(calls, responses), reference.sub_answers))
    return solve_scores(expected, len(calls), solved)[2]


def _named(calls: Sequence[ToolCall], responses: Sequence[str]) -> list[tuple[str, str]]:
    return [(call["name"], response) for call, response in zip(calls, responses, strict=True)]


def _filter_name(problem: str) -> str:
    """The name under which a problem of :func:`~pact_lightning.traces.leak.trace_problems` is counted."""
    names = {
        "not among the task's tools": "unknown tool",
        "holds the control tag": "control tag in a response",
        "holds role text": "role text in a response",
    }
    return next((name for part, name in names.items() if part in problem), "malformed turn")


def _normal(value: Any) -> Any:
    """A value in which equal means equal JSON: a boolean is no number."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return [_normal(item) for item in value] if isinstance(value, list) else value


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")

"""Replay of a trace's calls in its task's environment (METHOD section 6), and traces made of known calls.

:func:`trace_from_calls` is for data sets that hold calls and responses, but no teacher's text.
"""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.environments.sandbox.sandbox import SandboxError
from pact_lightning.environments.tool_calls import (
    ToolFunction,
    ToolThreads,
    ToolTimeoutError,
    failure,
    leave_environment,
    left_with,
    run_tool,
    start_environment,
)
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace, ExpertTurn
from pact_lightning.utils.errors import named_failure

_log = logging.getLogger(__name__)

Agreement = Literal["exact", "json", "differs"]


class EnvironmentFailedError(ValueError):
    """Failure to make or reset a task's environment."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Results of a replay.

    Attributes:
        results: One per call, in order.
        reward: The environment's own reward after the last call, if it gives one.
        tools: Names of the tools that the environment lists after its reset. If a call is of none of them, also those
            listed after the calls, which may have added tools. Empty if it lists none.
    """

    results: tuple[ToolResult, ...]
    reward: float | None = None
    tools: frozenset[str] = frozenset()


def replay_calls(prompt: PromptView, calls: Sequence[ToolCall], *, timeout_s: float = 30.0, seed: int = 0) -> Replay:
    """Run calls one after the other in a fresh environment.

    Args:
        prompt: The prompt that names the environment.
        calls: The calls, in order.
        timeout_s: Seconds that one call, or the start of the environment, may take. A call that takes longer, or
            raises, has failed, as in a rollout.
        seed: Seed of the environment's reset.

    Returns:
        A result per call.

    Raises:
        ImportError: The environment cannot be imported.
        EnvironmentFailedError: It cannot be made or reset.
        SandboxError: The sandbox does not work on this machine, so no result means anything.
    """
    threads, busy = ToolThreads(1, timeout_s), threading.Lock()
    environment, tools = _started(prompt, seed, threads, busy)
    runs: list[ToolFunction] = [partial(run_tool, environment, call) for call in calls]
    unlisted = bool(tools) and any(call["name"] not in tools for call in calls)
    if unlisted:
        runs.append(partial(_listed_tools, environment))
    futures = threads.submit(busy, runs) if runs else []
    results = tuple(_result(future) for future in futures[: len(calls)])
    if unlisted and futures[-1].exception() is None:
        tools |= futures[-1].result()
    return Replay(results, _closed(environment, threads, busy), tools)


def same_response(recorded: str, replayed: str) -> Agreement:
    """Compare two responses: exactly, then up to white space and JSON's notation (order of keys, 2 and 2.0).

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


def per_turn(trace: ExpertTrace, replay: Replay) -> list[tuple[ToolResult, ...]]:
    """Group the replayed results by turn."""
    results = iter(replay.results)
    return [tuple(islice(results, len(turn.calls))) for turn in trace.turns]


def with_responses(trace: ExpertTrace, replay: Replay) -> ExpertTrace:
    """Replace the trace's responses by the environment's."""
    turns = zip(trace.turns, per_turn(trace, replay), strict=True)
    return replace(
        trace, turns=tuple(replace(turn, responses=tuple(one.text for one in results)) for turn, results in turns)
    )


def _started(
    prompt: PromptView, seed: int, threads: ToolThreads, busy: threading.Lock
) -> tuple[Environment, frozenset[str]]:
    """Make and reset the environment; return it with the names of the tools it lists."""

    def begin() -> tuple[Environment, frozenset[str]]:
        environment = start_environment(prompt, seed)
        return environment, _listed_tools(environment)

    (begun,) = threads.submit(busy, [begin])
    error = begun.exception()
    if isinstance(error, ImportError):
        raise error
    if error is not None:
        # An environment is the user's code: whatever it raises is reported as its own failure.
        where = f"environment {prompt.environment.class_path} of task {prompt.id}"
        raise EnvironmentFailedError(f"{where} failed: {named_failure(error)}") from error
    started: tuple[Environment, frozenset[str]] = begun.result()
    return started


def _listed_tools(environment: Environment) -> frozenset[str]:
    """Return the names of the tools that an environment lists; malformed schemas are left to its checker."""
    listed = [tool.get("function") for tool in getattr(environment, "tools", ()) if isinstance(tool, Mapping)]
    return frozenset(
        str(function["name"]) for function in listed if isinstance(function, Mapping) and "name" in function
    )


def _closed(environment: Environment, threads: ToolThreads, busy: threading.Lock) -> float | None:
    """Return the environment's own reward, if it gives one, and let it clean up."""
    reward, failures = left_with(leave_environment(environment, threads, busy))
    for error in failures:
        _log.warning("the environment %s failed after a replay: %s", type(environment).__name__, named_failure(error))
    return reward


def _result(future: Future[Any]) -> ToolResult:
    # exception() and not result(): nothing that a tool raises, sys.exit() included, may stop the replay.
    error = future.exception()
    if isinstance(error, SandboxError):
        raise error
    if isinstance(error, ToolTimeoutError):
        return ToolResult(str(error), error=True)
    result: ToolResult = failure(error) if error is not None else future.result()
    return result


def _normal(value: Any) -> Any:
    """Mark booleans, so equal values are equal JSON: in Python ``True == 1``."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return [_normal(item) for item in value] if isinstance(value, list) else value


def trace_from_calls(
    calls: Sequence[ToolCall],
    responses: Sequence[str],
    reasoning: Sequence[str] | None = None,
    *,
    failed: Sequence[bool] | None = None,
    source: str = "",
) -> ExpertTrace:
    """Make a trace of one turn per call.

    Args:
        calls: The calls, in order; at least one.
        responses: One tool response per call.
        reasoning: One reasoning text per call, which is segmented by rule. Without it only the calls are supervised.
        failed: Per response, true if it reports an error; distinguishes retries from follow-ups. Default: none failed.
        source: The trace's origin, for reports.

    Returns:
        The trace, without a final answer.

    Raises:
        ValueError: There is no call, or a sequence is not as long as ``calls``.
    """
    if not calls:
        raise ValueError("a trace needs at least one call; a task without calls has no trace, so leave it out")
    for name, values in (("responses", responses), ("reasoning", reasoning), ("failed", failed)):
        if values is not None and len(values) != len(calls):
            raise ValueError(f"{len(calls)} calls but {len(values)} entries in {name}; give one entry per call")
    turns = []
    for index, (call, response) in enumerate(zip(calls, responses, strict=True)):
        chunks = segment_reasoning(reasoning[index], [call]) if reasoning is not None else ()
        retry = index > 0 and failed is not None and failed[index - 1]
        turns.append(ExpertTurn(chunks, (call,), (response,), turn_pattern(index, retry, chunks, is_final=False)))
    return ExpertTrace(tuple(turns), source=source)

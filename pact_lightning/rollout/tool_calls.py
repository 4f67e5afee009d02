"""A tool call as every loop runs it, the engine's and a teacher's: what it comes back with, whatever happens."""

import copy
import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from pact_lightning.dialogue.tool_call import ParsedCall, ToolCall
from pact_lightning.environments.protocol import (
    Environment,
    EnvironmentUnavailableError,
    ToolResult,
    close_environment,
)
from pact_lightning.environments.tool_output import RAISED, failure_text
from pact_lightning.environments.unanswered import is_unreachable
from pact_lightning.rollout.tool_threads import ToolFunction, ToolThreads
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.prompt import PromptView

_log = logging.getLogger(__name__)
_SETTLED_S = 0.1
"""A call has settled a moment before its thread lets go of the environment."""


def refusal_of(offered: Sequence[str], entry: ParsedCall) -> ToolResult | None:
    """What a call that cannot be run comes back with; ``None`` for one that can."""
    if entry.call is None:
        return ToolResult(entry.error, error=True)
    if entry.call["name"] not in offered:
        known = ", ".join(offered)
        return ToolResult(f"There is no tool named {entry.call['name']!r}. The tools are: {known}.", error=True)
    return None


def run_tool(environment: Environment, call: ToolCall) -> ToolResult:
    """Runs one call.

    Raises:
        TypeError: The environment gives anything but a ``ToolResult`` with a text.
        Exception: Whatever the tool raises.
    """
    # A copy: a tool may keep its arguments and change them later, and the trajectory must not change with them.
    result: Any = environment.call(call["name"], copy.deepcopy(call["arguments"]))
    if not isinstance(result, ToolResult) or not isinstance(result.text, str):
        raise TypeError(f"the environment's call() must return a ToolResult with a text, not {result!r:.80}")
    return result


def stop_where_unavailable(error: BaseException) -> None:
    """Lets the one exception through that ends a run.

    Raises:
        EnvironmentUnavailableError: That is what ``error`` is.
    """
    if isinstance(error, EnvironmentUnavailableError):
        raise error


def failure(error: BaseException) -> ToolResult:
    """What a call that raised comes back with.

    Raises:
        EnvironmentUnavailableError: That is what it raised; the run has to stop.
    """
    stop_where_unavailable(error)
    return ToolResult(failure_text(error), error=True, unanswered=is_unreachable(error))


def raised_responses(trajectory: Trajectory) -> list[str]:
    """The responses of a rollout's calls that an exception ended."""
    return [
        response
        for turn in trajectory.turns
        for response, error in zip(turn.responses, turn.errors, strict=True)
        if error and response.startswith(RAISED)
    ]


def cut_response(text: str, limit: int) -> str:
    """A response as the policy reads it: of at most ``limit`` characters, and says so where it was longer."""
    # Half of a surrogate pair, as JSON may hold it, has no UTF-8 and so no tokens.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= limit else f"{text[:limit]}... (cut after {limit} characters)"


def start_environment(prompt: PromptView, seed: int) -> Environment:
    """Makes a task's environment and resets it; one that cannot be reset is closed again.

    Args:
        prompt: The task, as a rollout sees it.
        seed: What the environment is reset with.

    Raises:
        ImportError: The class cannot be found.
        Exception: Whatever making or resetting it raises.
    """
    environment: Environment = prompt.environment.build()
    try:
        environment.reset(prompt, seed)
    except BaseException:
        try:
            close_environment(environment)
        except Exception as error:  # noqa: BLE001  # the user's code; why it could not be reset matters more
            _log.warning("close() of the environment of task %s failed: %r", prompt.id, error)
        raise
    return environment


def leave_environment(environment: object, tools: ToolThreads, busy: threading.Lock) -> list[Future[Any]]:
    """Starts what ends a rollout: the environment's ``reward`` and ``close``, where it has them.

    Args:
        environment: The environment.
        tools: Where they run, each under the limit of a call.
        busy: The environment's lock. An environment in which a call that was given up still runs is left open: to wait
            for it once more would cost its limit twice.

    Returns:
        What :func:`left_with` reads.
    """
    verbs = [verb for verb in (_reward_verb(environment), _close_verb(environment)) if verb is not None]
    if not verbs:
        return []
    if not busy.acquire(timeout=_SETTLED_S):
        left_open: Future[Any] = Future()
        left_open.set_exception(RuntimeError("a call that was given up still runs in it, so that it is left open"))
        return [left_open]
    busy.release()
    return tools.submit(busy, verbs)


def left_with(ended: Sequence[Future[Any]]) -> tuple[float | None, list[BaseException]]:
    """Waits for what :func:`leave_environment` started.

    Returns:
        The environment's own reward, ``None`` where it gave none; and what went wrong.
    """
    failures = [error for future in ended if (error := future.exception()) is not None]
    rewards = [future.result() for future in ended if future.exception() is None]
    return next((reward for reward in rewards if reward is not None), None), failures


def _reward_verb(environment: object) -> ToolFunction | None:
    reward = getattr(environment, "reward", None)
    if not callable(reward):
        return None

    def run() -> float:
        value = float(reward())
        if not math.isfinite(value):
            raise ValueError(f"the environment's reward() must be a finite number, not {value}")
        return value

    return run


def _close_verb(environment: object) -> ToolFunction | None:
    if not callable(getattr(environment, "close", None)):
        return None
    return partial(close_environment, environment)

"""Tool calls and an environment's life, as the engine, a teacher and a replay run them.

Calls run off the main thread, each under a time limit, and one at a time in each environment.
"""

import copy
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pact_lightning.environments.protocol import (
    Environment,
    EnvironmentUnavailableError,
    ToolResult,
    close_environment,
    unknown_tool,
)
from pact_lightning.environments.tool_output import RAISED, failure_text, is_unreachable, plain_result
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.errors import FAILURES, failure_reason, named_failure, plain_text

ToolFunction = Callable[[], Any]

_log = logging.getLogger(__name__)
_LONGEST_REASON = 2000
_SETTLED_S = 0.1  # a call is settled a moment before its thread releases the environment


class ToolTimeoutError(Exception):
    """Error of a call that ran into its time limit, or waited for one that did."""


@dataclass(slots=True)
class _Turn:
    """Calls of one turn, which run one after the other."""

    busy: threading.Lock
    calls: Sequence[ToolFunction]
    results: list[Future[Any]]
    holds_place: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)


class ToolThreads:
    """Threads that run the calls of many rollouts at the same time, those of one rollout in order.

    A thread cannot be stopped from outside. A call over its limit is abandoned: its thread goes on uncounted, and does
    not keep the process from ending. A ``ThreadPoolExecutor`` would.

    Args:
        threads: Number of turns whose calls run at the same time.
        limit_s: Time limit of one call, in seconds from its start.
    """

    def __init__(self, threads: int, limit_s: float) -> None:
        self._places = threading.Semaphore(threads)
        self._limit_s = limit_s

    def submit(self, busy: threading.Lock, calls: Sequence[ToolFunction]) -> list[Future[Any]]:
        """Start a turn's calls.

        Args:
            busy: The environment's lock. An abandoned call holds it while it runs, and the next one waits.
            calls: The calls, in order.

        Returns:
            One future per call, with its result, the exception that it raised, or :class:`ToolTimeoutError`.
        """
        turn = _Turn(busy, calls, [Future() for _ in calls])
        threading.Thread(target=self._work, args=(turn,), name="tools", daemon=True).start()
        return turn.results

    def _work(self, turn: _Turn) -> None:
        self._places.acquire()
        turn.holds_place = True
        for number, (call, result) in enumerate(zip(turn.calls, turn.results, strict=True)):
            watch = threading.Timer(self._limit_s, self._give_up, (turn, number))
            watch.daemon = True
            watch.start()
            with turn.busy:
                if result.done():
                    return
                try:
                    _settle(result, call())
                except BaseException as error:  # noqa: BLE001  # the user's code; even sys.exit() must stop here
                    _settle(result, error)
            watch.cancel()
            if isinstance(result.exception(), ToolTimeoutError):
                return
        self._leave(turn)

    def _give_up(self, turn: _Turn, number: int) -> None:
        limit = f"{self._limit_s:g} seconds"
        if not _settle(turn.results[number], ToolTimeoutError(f"The tool did not answer within {limit}.")):
            return
        for later in turn.results[number + 1 :]:
            _settle(later, ToolTimeoutError(f"Not run: the call before it did not end within {limit}."))
        self._leave(turn)

    def _leave(self, turn: _Turn) -> None:
        with turn.guard:
            held, turn.holds_place = turn.holds_place, False
        if held:
            self._places.release()


def _settle(future: Future[Any], outcome: Any) -> bool:
    """Set a future's outcome, unless it has one; return whether this call set it."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        return False
    return True


def refusal_of(offered: Sequence[str], entry: ParsedCall) -> ToolResult | None:
    """Return the answer to a call that cannot be run; ``None`` for one that can."""
    if entry.call is None:
        return ToolResult(entry.error, error=True)
    if entry.call["name"] not in offered:
        return unknown_tool(entry.call["name"], offered)
    return None


def run_tool(environment: Environment, call: ToolCall) -> ToolResult:
    """Run one call and make its result plain.

    Raises:
        TypeError: The environment does not return a ``ToolResult`` with a text.
        BaseException: Any error of the tool, ``SystemExit`` included.
    """
    # A copy: a tool may change its arguments later, and the trajectory must not change with them.
    return plain_result(environment.call(call["name"], copy.deepcopy(call["arguments"])))


def stop_where_unavailable(error: BaseException) -> None:
    """Raise the one error that ends a run.

    Raises:
        EnvironmentUnavailableError: ``error`` is one.
    """
    if isinstance(error, EnvironmentUnavailableError):
        raise error


def failure(error: BaseException) -> ToolResult:
    """Return the answer to a call that raised.

    Raises:
        EnvironmentUnavailableError: ``error`` is one, and the run has to stop.
    """
    stop_where_unavailable(error)
    return ToolResult(failure_text(error), error=True, unanswered=is_unreachable(error))


def raised_responses(trajectory: Trajectory) -> list[str]:
    """Return the responses to a rollout's calls that raised."""
    return [
        response
        for turn in trajectory.turns
        for response, error in zip(turn.responses, turn.errors, strict=True)
        if error and response.startswith(RAISED)
    ]


def cut_response(text: str, limit: int) -> str:
    """Cut a response to at most ``limit`` characters for the policy, and say so."""
    shown = plain_text(text[:limit])
    return shown if len(text) <= limit else f"{shown}... (cut after {limit} characters)"


def start_failure(error: BaseException) -> str:
    """Return why an environment did not start, as the one response of its rollout.

    Raises:
        EnvironmentUnavailableError: ``error`` is one, and the run has to stop.
    """
    stop_where_unavailable(error)
    return f"environment failed: {cut_response(failure_reason(error), _LONGEST_REASON)}"


def start_environment(prompt: PromptView, seed: int) -> Environment:
    """Make and reset a task's environment; one that cannot be reset is closed again.

    Args:
        prompt: The task, as a rollout sees it.
        seed: Seed of the reset.

    Raises:
        ImportError: The class cannot be found.
        BaseException: Any error of making or resetting the environment, ``SystemExit`` included.
    """
    environment: Environment = prompt.environment.build()
    try:
        environment.reset(prompt, seed)
    except BaseException:
        try:
            close_environment(environment)
        except FAILURES as error:  # why it could not be reset matters more
            _log.warning("close() of the environment of task %s failed: %s", prompt.id, named_failure(error))
        raise
    return environment


def leave_environment(environment: object, tools: ToolThreads, busy: threading.Lock) -> list[Future[Any]]:
    """Start the end of a rollout: the environment's ``reward`` and ``close``, if it has them.

    Args:
        environment: The environment.
        tools: Threads that run them, each under the limit of a call.
        busy: The environment's lock. An environment in which an abandoned call still runs is left open: waiting for it
            again would cost the limit twice.

    Returns:
        Futures for :func:`left_with`.
    """
    verbs: list[ToolFunction] = []
    if has_verb(environment, "reward"):
        verbs.append(partial(finite_reward, environment))
    if has_verb(environment, "close"):
        verbs.append(partial(close_environment, environment))
    if not verbs:
        return []
    if not busy.acquire(timeout=_SETTLED_S):
        left_open: Future[Any] = Future()
        left_open.set_exception(RuntimeError("a call that was given up still runs in it, so that it is left open"))
        return [left_open]
    busy.release()
    return tools.submit(busy, verbs)


def left_with(ended: Sequence[Future[Any]]) -> tuple[float | None, list[BaseException]]:
    """Wait for the verbs that :func:`leave_environment` started.

    Returns:
        The environment's own reward, or ``None`` if it has none; and the exceptions that were raised.
    """
    failures = [error for future in ended if (error := future.exception()) is not None]
    rewards = [future.result() for future in ended if future.exception() is None]
    return next((reward for reward in rewards if reward is not None), None), failures


def has_verb(environment: object, verb: str) -> bool:
    """Return whether an environment has an optional verb, or cannot even be asked for it: then running it tells why."""
    try:
        return callable(getattr(environment, verb, None))
    except FAILURES:
        return True


def finite_reward(environment: Any) -> float:
    """Ask an environment for its own reward.

    Raises:
        ValueError: It is no finite number.
        BaseException: Any error of the environment.
    """
    value = float(environment.reward())
    if not math.isfinite(value):
        raise ValueError(f"the environment's reward() must be a finite number, not {value}")
    return value

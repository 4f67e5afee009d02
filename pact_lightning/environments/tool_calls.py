"""Tool calls off the main thread, each with a time limit, and never two at a time in one environment.

A tool call as every loop runs it, the engine's and a teacher's: what it comes back with, whatever happens.
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

from pact_lightning.environments.protocol import Environment, EnvironmentUnavailableError, ToolResult, close_environment
from pact_lightning.environments.tool_output import RAISED, failure_text, is_unreachable
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.types.trajectory import Trajectory

ToolFunction = Callable[[], Any]


class ToolTimeoutError(Exception):
    """A call ran into its time limit, or waited for one that did."""


@dataclass(slots=True)
class _Turn:
    """The calls of one turn, run one after the other."""

    busy: threading.Lock
    calls: Sequence[ToolFunction]
    results: list[Future[Any]]
    holds_place: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)


class ToolThreads:
    """Runs the calls of many rollouts at the same time, those of one rollout in order.

    A thread cannot be stopped from outside. A call over its limit is given up: its thread stays behind, is no longer
    counted, and does not keep the process from ending, which is why this is no ``ThreadPoolExecutor``.

    Args:
        threads: Turns whose calls run at the same time.
        limit_s: Seconds that one call may take, counted from its start.
    """

    def __init__(self, threads: int, limit_s: float) -> None:
        self._places = threading.Semaphore(threads)
        self._limit_s = limit_s

    def submit(self, busy: threading.Lock, calls: Sequence[ToolFunction]) -> list[Future[Any]]:
        """Starts a turn's calls.

        Args:
            busy: The environment's lock. A call that was given up still holds it while it runs, and the next one waits.
            calls: What to run, in order.

        Returns:
            One future per call: its result, the exception it raised, or :class:`ToolTimeoutError`.
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
                except BaseException as error:  # noqa: BLE001  # the user's code; even sys.exit() must not get further
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
    """Gives a future its outcome, unless it has one; says whether it was this one."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        return False
    return True


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

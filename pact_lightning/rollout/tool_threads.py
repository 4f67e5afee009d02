"""Tool calls off the main thread, each with a time limit, and never two at a time in one environment."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

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

"""Event loops in threads of their own, for clients that live longer than one call."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """An event loop that runs in a daemon thread until the process ends.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def start(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Starts a coroutine on the loop.

        Returns:
            A future to wait on from any other thread.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Calls a function on the loop, soon; from any thread."""
        self._loop.call_soon_threadsafe(function)


@cache
def loop_thread(name: str) -> LoopThread:
    """The loop of this name, started when it is first asked for."""
    return LoopThread(name)

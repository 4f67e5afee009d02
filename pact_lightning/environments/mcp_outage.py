"""How long a server may stay away: what all connections to one server know of it together."""

import time

from pact_lightning.environments.protocol import EnvironmentUnavailableError

MAX_PAUSE_S = 30.0


class ServerOutage:
    """Failures in a row of connecting to one server, over all rollouts of this process. Used on the server's loop only.

    Failures that overlap in time count as one: a short outage fails for every rollout that starts in it.

    Args:
        name: The server, for messages.
        max_failures: Failures in a row after which the run stops.
        backoff_s: Pause after the first failure; doubled by each further one, up to 30 seconds.
    """

    def __init__(self, name: str, max_failures: int, backoff_s: float) -> None:
        self._name = name
        self._max_failures = max_failures
        self._backoff_s = backoff_s
        self._last = float("-inf")
        self.failures = 0
        self.was_up = False

    def up(self) -> None:
        """The server has been reached."""
        self.was_up = True
        self.failures = 0

    def failed(self, began: float, problem: Exception) -> None:
        """A connection that was tried from ``began`` on (``time.monotonic()``) has failed.

        Raises:
            EnvironmentUnavailableError: That was one too many.
        """
        if began >= self._last:
            self._last = time.monotonic()
            self.failures += 1
        if self.failures >= self._max_failures:
            raise EnvironmentUnavailableError(
                f"the MCP server could not be reached {self.failures} times in a row, and the run stops: {problem}"
            ) from problem

    def pause_s(self, restarts: int) -> float:
        """Seconds to wait before the next try.

        Args:
            restarts: How often this connection has been opened again already.
        """
        return min(self._backoff_s * 2.0 ** max(restarts, self.failures - 1, 0), MAX_PAUSE_S)

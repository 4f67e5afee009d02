"""The thread in which the rollouts of the next phase are made while the present one trains."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from pact_lightning.phase_ahead import SampledBy
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.rollout.trajectory import Trajectory

RolledOut = tuple[list[list[Trajectory]], RolloutStats]
"""For every request its rollouts, and what all of them took."""

Pause = Callable[[], None]
"""Called between two steps of the sampler; it raises in order to end the run."""

_LOOK_S = 0.2


class RolloutsAhead:
    """A run of rollouts beside the update.

    Its thread does not keep the process from ending, should nobody wait for it.

    Args:
        sampled_by: Which weights sample, for which phase.
        work: Makes the rollouts.
    """

    def __init__(self, sampled_by: SampledBy, work: Callable[[Pause], RolledOut]) -> None:
        self.sampled_by = sampled_by
        self._dropped = threading.Event()
        self._outcome: Future[RolledOut] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name="rollouts ahead", daemon=True)
        self._thread.start()

    def wait(self, meanwhile: Pause) -> None:
        """Waits until the run has ended, well or not.

        Args:
            meanwhile: Called a few times a second; it may raise in order to wait no longer.
        """
        meanwhile()
        while self._thread.is_alive():
            self._thread.join(_LOOK_S)
            meanwhile()

    def result(self) -> RolledOut:
        """What a run that has ended has made.

        Raises:
            BaseException: Whatever ended it.
        """
        return self._outcome.result()

    def drop(self) -> None:
        """Ends the run at the next step of its sampler, and waits for that; what has been finished stays on disk."""
        self._dropped.set()
        self._thread.join()

    def _run(self, work: Callable[[Pause], RolledOut]) -> None:
        try:
            self._outcome.set_result(work(self._pause))
        except BaseException as error:  # noqa: BLE001  # raised again by result(), in the thread that asks for it
            self._outcome.set_exception(error)

    def _pause(self) -> None:
        if self._dropped.is_set():
            raise _DroppedError


class _DroppedError(Exception):
    """Nobody wants the rollouts any more."""

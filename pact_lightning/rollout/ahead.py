"""Rollouts one phase ahead of the update: when they are made, which weights sampled them, how stale those are [D].

While phase n trains, the rollouts of phase n + 1 are made by the weights that began phase n. They are off by one phase
of updates, no more: the next ones start only when these have been taken. The surrogate is in its decoupled form: its
ratio is taken to the weights that begin the update (``pi_old``), and each token is weighted by what these give it over
what its sampler gave it (METHOD 5.19, 5.20). That corrects a token for the weights that drew it, up to the cap, and not
for the turns before it, as all weights per token do.

The thread in which the rollouts of the next phase are made while the present one trains.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.rollout.samplers.base import SamplerBackend, keeps_weights
from pact_lightning.types.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class SampledBy:
    """The weights that sampled the rollouts of a phase.

    Attributes:
        phase: The phase that trains on the rollouts.
        policy: The weights' name, as of :attr:`~pact_lightning.PolicyModule.policy_name`.
        step: Optimiser steps that had led to them.
    """

    phase: int
    policy: str
    step: int

    def staleness(self, step: int) -> int:
        """Optimiser steps between these weights and those that begin the update.

        Args:
            step: Optimiser steps made when the update begins.

        >>> SampledBy(3, "some weights", 16).staleness(24)
        8
        """
        return step - self.step


def check_overlap(sampler: SamplerBackend | None, importance_cap: float | None, processes: int) -> None:
    """Checks that rollouts can be made beside the update, and are corrected for the weights that sampled them.

    Without the correction nothing in the loss would know of those weights, so that it is no choice here [D].

    Args:
        sampler: What samples in the policy's stead.
        importance_cap: The bound on the weights that correct, ``None`` for no correction.
        processes: Processes that train together.

    Raises:
        ValueError: They cannot, or are not.
    """
    if not keeps_weights(sampler):
        who = "the policy itself, which is being trained" if sampler is None else type(sampler).__name__
        raise ValueError(
            "data.overlap needs a sampler that holds weights of its own while the policy is trained, and the one of "
            f"this recipe (model.sampler) is {who}; use a vLLM server (recipes/overlays/vllm_server.yaml), or set "
            "data.overlap to false"
        )
    if importance_cap is None:
        raise ValueError(
            "data.overlap trains on rollouts of earlier weights, and model.importance_cap null would leave that "
            "uncorrected; set it to auto or to a number, or data.overlap to false"
        )
    if processes > 1:
        raise ValueError(
            f"data.overlap works with one process, and {processes} train together here; set trainer.devices and "
            "trainer.num_nodes to 1, or data.overlap to false"
        )


def another_phase_follows(phase: int, *, step: int, phase_steps: int, max_phases: int | None, max_steps: int) -> bool:
    """Whether a phase comes after this one, so that its rollouts are worth making now.

    A step that is skipped makes no difference for long: where a phase follows after all, it makes its own rollouts.

    Args:
        phase: The phase that begins.
        step: Optimiser steps made by then.
        phase_steps: Optimiser steps of a phase.
        max_phases: Phases of the run (``trainer.max_epochs``); -1 or ``None`` for no end.
        max_steps: Optimiser steps of the run (``trainer.max_steps``); -1 for no end.

    >>> another_phase_follows(1, step=8, phase_steps=8, max_phases=3, max_steps=-1)
    True
    >>> another_phase_follows(2, step=16, phase_steps=8, max_phases=3, max_steps=-1)
    False
    >>> another_phase_follows(1, step=8, phase_steps=8, max_phases=3, max_steps=16)
    False
    """
    in_phases = max_phases is None or max_phases < 0 or phase + 1 < max_phases
    return in_phases and (max_steps < 0 or step + phase_steps < max_steps)


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

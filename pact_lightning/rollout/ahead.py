"""Rollouts one phase ahead of the update [D].

While phase n trains, a thread makes the rollouts of phase n + 1 with the weights that began phase n. They are off by
one phase of updates and no more, since the next ones start only when these have been taken.

The surrogate is in its decoupled form: its ratio is taken to the weights that begin the update (``pi_old``), and each
token is weighted by its probability under these over that under its sampler (METHOD 5.19, 5.20). As every weight per
token, this corrects a token for the weights that drew it, up to the cap, and not for the turns before it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.rollout.samplers.base import SamplerBackend, keeps_weights
from pact_lightning.types.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class SampledBy:
    """Weights that sampled the rollouts of a phase.

    Attributes:
        phase: The phase that trains on the rollouts.
        policy: Name of the weights (the policy module's ``policy_name``).
        step: Optimiser steps made before they sampled.
    """

    phase: int
    policy: str
    step: int

    def staleness(self, step: int) -> int:
        """Return the number of optimiser steps between these weights and those that begin the update.

        Args:
            step: Optimiser steps made when the update begins.

        >>> SampledBy(3, "some weights", 16).staleness(24)
        8
        """
        return step - self.step


def check_overlap(sampler: SamplerBackend | type | None, importance_cap: float | None, processes: int) -> None:
    """Check that rollouts can be made beside the update, and are corrected for the weights that sampled them.

    Without the correction nothing in the loss would know of those weights, so it cannot be switched off here [D].

    Args:
        sampler: The sampler backend or its class; ``None`` for the policy itself.
        importance_cap: Bound on the weights of the correction; ``None`` for no correction.
        processes: Number of processes that train together.

    Raises:
        ValueError: The sampler holds no weights of its own, there is no correction, or several processes train.
    """
    if not keeps_weights(sampler):
        who = (
            "the policy itself, which is being trained"
            if sampler is None
            else getattr(sampler, "__name__", type(sampler).__name__)
        )
        raise ValueError(
            "data.overlap needs a sampler that keeps its own weights while the policy is trained, and the one in "
            f"this recipe (model.sampler) is {who}; use a vLLM server (recipes/overlays/vllm_server.yaml), or set "
            "data.overlap to false"
        )
    if importance_cap is None:
        raise ValueError(
            "data.overlap trains on rollouts of earlier weights, and model.importance_cap null does not correct for "
            "that; set it to auto or to a number, or data.overlap to false"
        )
    if processes > 1:
        raise ValueError(
            f"data.overlap works with one process only, and this run has {processes}; set trainer.devices and "
            "trainer.num_nodes to 1, or data.overlap to false"
        )


def another_phase_follows(phase: int, *, step: int, phase_steps: int, max_phases: int | None, max_steps: int) -> bool:
    """Tell whether a phase will come after this one, whose rollouts are then worth making now.

    Skipped steps may make the answer wrong. That does no harm: a phase without rollouts makes its own.

    Args:
        phase: The phase that begins.
        step: Optimiser steps made before it.
        phase_steps: Optimiser steps of a phase.
        max_phases: Limit on the run's phases (``trainer.max_epochs``); -1 or ``None`` for none.
        max_steps: Limit on the run's optimiser steps (``trainer.max_steps``); -1 for none.

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
"""The rollouts of every request, and the counts and times of them all."""

Pause = Callable[[], None]
"""Function called between two steps of the sampler; it raises to end the run."""

Made = TypeVar("Made")
"""What a run of rollouts makes."""

_LOOK_S = 0.2


class RolloutsAhead(Generic[Made]):
    """Run of rollouts in a thread of its own, beside the update.

    The thread is a daemon: the process can end without waiting for it.

    Args:
        sampled_by: The weights that sample.
        work: Makes the rollouts.
    """

    def __init__(self, sampled_by: SampledBy, work: Callable[[Pause], Made]) -> None:
        self.sampled_by = sampled_by
        self._dropped = threading.Event()
        self._outcome: Future[Made] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name="rollouts ahead", daemon=True)
        self._thread.start()

    def wait(self, meanwhile: Pause) -> None:
        """Wait until the run has ended, with or without an error.

        Args:
            meanwhile: Called a few times a second; it may raise to end the wait.
        """
        meanwhile()
        while self._thread.is_alive():
            self._thread.join(_LOOK_S)
            meanwhile()

    def result(self) -> Made:
        """Return the rollouts of the run, which must have ended.

        Raises:
            BaseException: The error that ended the run.
        """
        return self._outcome.result()

    def drop(self) -> None:
        """End the run at the next step of its sampler, and wait for that; finished rollouts stay on disk."""
        self._dropped.set()
        self._thread.join()

    def _run(self, work: Callable[[Pause], Made]) -> None:
        try:
            self._outcome.set_result(work(self._pause))
        except BaseException as error:  # noqa: BLE001  # raised again by result(), in the thread that asks for it
            self._outcome.set_exception(error)

    def _pause(self) -> None:
        if self._dropped.is_set():
            raise _DroppedError


class _DroppedError(Exception):
    """Signal that ends a dropped run."""

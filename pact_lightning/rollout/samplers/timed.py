"""A sampler whose prefill and decoding are timed apart."""

from collections.abc import Sequence

from pact_lightning.phase_clock import PhaseClock
from pact_lightning.rollout.samplers.base import Sampler, TurnOutput, TurnRequest


class TimedSampler:
    """Measures any sampler: ``submit`` is prefill, ``step`` is decoding.

    A sampler that only queues its turns in ``submit`` has its prefill counted as decoding.

    Args:
        sampler: What samples.
        clock: What is told.
    """

    def __init__(self, sampler: Sampler, clock: PhaseClock) -> None:
        self._sampler = sampler
        self._clock = clock

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Takes turns into work."""
        with self._clock.measure("prefill"):
            self._sampler.submit(requests)

    def step(self) -> list[TurnOutput]:
        """Advances all rows in work."""
        with self._clock.measure("decode"):
            return self._sampler.step()

    def release(self, row: int) -> None:
        """Forgets a finished row."""
        self._sampler.release(row)

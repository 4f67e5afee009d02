"""Clock of a phase: seconds by part, measured once the device has finished."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Part = Literal["wait", "prefill", "decode", "tools", "credit", "old", "reference", "forward", "backward", "step"]

PARTS: tuple[Part, ...] = get_args(Part)
"""Parts in the order of a phase: rollouts (waited for if they were made ahead, else made), credit, ``pi_old``, then the
packs and the optimiser."""


def device_time(device: torch.device) -> float:
    """Return the seconds of a running clock, after waiting for the device; calls of CUDA return before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PhaseClock:
    """Seconds of a phase by part [D].

    No second counts twice: a part that is measured within another one is subtracted from it.
    """

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = {}
        self._device = torch.device("cpu")
        self._within: list[Part] = []
        self._began = self._ended = self._since = device_time(self._device)

    def start(self, device: torch.device) -> None:
        """Begin a phase.

        Args:
            device: Device of the policy; a CUDA device is waited for at both ends of every part.
        """
        self.seconds = {}
        self._device = device
        self._within = []
        self._began = self._ended = device_time(self._device)

    @property
    def total(self) -> float:
        """Seconds from the start to the end of the last part."""
        return self._ended - self._began

    @property
    def other(self) -> float:
        """Seconds in none of the parts."""
        return max(self.total - sum(self.seconds.values()), 0.0)

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Add the seconds spent inside to a part."""
        self._charge()
        self._within.append(part)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def add(self, part: Part, seconds: float) -> None:
        """Add seconds to a part that were measured elsewhere, outside of all other parts."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def _charge(self) -> None:
        """Add the time since the last call to the part that is running."""
        self._ended = device_time(self._device)
        if self._within:
            self.add(self._within[-1], self._ended - self._since)
        self._since = self._ended

"""A clock that waits for the device.

Where the seconds of a phase go.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


def device_time(device: torch.device) -> float:
    """Seconds of a running clock, once a device has done all that it was given; CUDA's calls return before that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


Part = Literal["wait", "prefill", "decode", "tools", "credit", "old", "reference", "forward", "backward", "step"]

PARTS: tuple[Part, ...] = (
    "wait",
    "prefill",
    "decode",
    "tools",
    "credit",
    "old",
    "reference",
    "forward",
    "backward",
    "step",
)
"""In the order in which a phase meets them: rollouts (waited for where they were made ahead, else made), credit,
``pi_old``, then the packs and the optimiser."""


class PhaseClock:
    """Adds up the seconds of a phase by part [D].

    A part that is measured within another one is taken off that one, so that the parts never count a second twice.
    """

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = {}
        self._device = torch.device("cpu")
        self._within: list[Part] = []
        self._began = self._ended = self._since = device_time(self._device)

    def start(self, device: torch.device) -> None:
        """Begins a phase.

        Args:
            device: Where the policy runs; a CUDA device is waited for at both ends of every part.
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
        """Gives what happens inside to a part."""
        self._charge()
        self._within.append(part)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def add(self, part: Part, seconds: float) -> None:
        """Gives a part seconds that were measured elsewhere, outside of every other part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def _charge(self) -> None:
        """Gives the time since the last look to the part that is running."""
        self._ended = device_time(self._device)
        if self._within:
            self.add(self._within[-1], self._ended - self._since)
        self._since = self._ended

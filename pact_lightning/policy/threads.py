"""CPU threads of torch, as many as there are cores that other processes leave free.

Two threads that share a small product wait for each other at its end. If one of them has lost its core to another
process, the other waits until the kernel gives it back, and that for every product: beside one busy process, two
threads on two cores take several times as long as one thread does.
"""

import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.utils.hooks import RemovableHandle

_FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS = 0.5
"""Length of an interval, of about fifty of the kernel's ticks."""
_FEWER_AFTER, _MORE_AFTER = 2, 4
"""Intervals in a row that must ask for fewer threads, or for more."""
_SPARE = 0.3
"""Share of a core that other processes may use while a thread of ours counts on it."""


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Reading of the clocks of the cores that this process may use.

    Attributes:
        at: Seconds of a running clock.
        idle: Seconds in which these cores had nothing to do, summed over them.
        own: Seconds of CPU time of this process, over all its threads.
    """

    at: float
    idle: float
    own: float

    @classmethod
    def now(cls) -> "CoreTimes":
        """Read the clocks."""
        cores = psutil.cpu_times(percpu=True)
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for number, core in enumerate(cores) if number in usable)
        return cls(time.monotonic(), idle, time.process_time())


def free_cores(before: CoreTimes, after: CoreTimes) -> float:
    """Return how many cores were idle or this process's own between two readings."""
    return (after.idle - before.idle + after.own - before.own) / (after.at - before.at)


def threads_for(free: float, most: int) -> int:
    """Return the number of threads for so many free cores: at least 1, at most ``most`` [D]."""
    return min(max(math.floor(free + _SPARE), 1), most)


class FreeThreads:
    """Number of torch's threads, followed while a model runs on the CPU [D].

    It is set before a forward, in the thread that runs it; the backward pass uses the same number. ``OMP_NUM_THREADS``
    or ``MKL_NUM_THREADS`` in the environment fixes the number, and nothing is measured. Processes that this one
    started, such as tools, count as others.

    Attributes:
        most: The number of threads that torch begins with, or fewer where the container allows fewer cores.
    """

    def __init__(self) -> None:
        self.most = min(torch.get_num_threads(), math.ceil(_container_cores()))
        self._before = CoreTimes.now()
        self._wanted: deque[int] = deque(maxlen=_MORE_AFTER)
        self._told = False

    def follow(self, decoder: nn.Module) -> RemovableHandle | None:
        """Adjust the number before every forward of a decoder.

        Returns:
            The hook, which ends it when removed; ``None`` where the number is fixed.
        """
        if any(os.environ.get(name) for name in _FIXED_BY):
            return None
        torch.set_num_threads(self.most)
        if self.most < 2:
            return None

        def before_forward(*_: Any) -> None:
            self.adjust()

        return decoder.register_forward_pre_hook(before_forward)

    def adjust(self) -> None:
        """Look at the cores, if an interval is over, and set the number of threads."""
        if time.monotonic() - self._before.at < _SECONDS:
            return
        now = CoreTimes.now()
        free = free_cores(self._before, now)
        self._before = now
        first = not self._wanted
        self._wanted.append(threads_for(free, self.most))
        number = self.next_number(torch.get_num_threads(), list(self._wanted), first=first)
        if number == torch.get_num_threads():
            return
        torch.set_num_threads(number)
        if number < self.most and not self._told:
            self._told = True
            rank_zero_info(
                f"CPU threads: {number} instead of {self.most}, since other processes leave {free:.1f} cores free; set "
                "OMP_NUM_THREADS for a fixed number"
            )

    @staticmethod
    def next_number(present: int, wanted: list[int], *, first: bool = False) -> int:
        """Choose the next number of threads: fewer soon, more after a while.

        Args:
            present: The number in use.
            wanted: What the last intervals asked for, the newest last.
            first: There was no interval before; it decides alone.
        """
        if first:
            return wanted[-1]
        fewer, more = wanted[-_FEWER_AFTER:], wanted[-_MORE_AFTER:]
        if len(fewer) == _FEWER_AFTER and max(fewer) < present:
            return max(fewer)
        if len(more) == _MORE_AFTER and min(more) > present:
            return min(more)
        return present


def _container_cores() -> float:
    """Return how many cores' time a container may use; without end where it has no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else int(quota) / int(period)

"""Row of the benchmark table, and timing of contenders side by side."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

Figure = float | list[float] | None


@dataclass(frozen=True)
class Row:
    """Figure with its goal.

    Attributes:
        bench: Name of the row.
        ours: Figure of this package, in the unit of ``settings["unit"]``: seconds, bytes, tokens per second.
        peer: Figure of the other side; ``None`` where there is none.
        ratio: The figure that the goal is about.
        goal: Goal of the ratio.
        goal_is: Whether the ratio should be ``at least`` or ``at most`` the goal.
        repeats: Rounds of each side; ``ours`` and ``peer`` are medians.
        settings: Settings of the run, in words and numbers: model, lengths, dtype, unit, spread.
    """

    bench: str
    ours: Figure
    peer: Figure
    ratio: float
    goal: float
    goal_is: Literal["at least", "at most"]
    repeats: int
    settings: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the row as an object of ``bench.jsonl``; the goal's direction is one of its settings."""
        record = asdict(self)
        record["settings"] = {**record["settings"], "goal_is": record.pop("goal_is")}
        return record


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> list[float]:
        """Shortest and longest repeat."""
        return [round(min(self.seconds), 4), round(max(self.seconds), 4)]


def alternate(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time several things in turn: A B A B ..., after one round that does not count.

    Drift of the machine (heat, neighbours) then falls on all of them alike.

    Args:
        contenders: Functions to run, by name.
        repeats: Rounds that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            gc.collect()
            _wait_for_device()
            started = time.perf_counter()
            run()
            _wait_for_device()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(values) for name, values in seconds.items()}


def spreads(timings: dict[str, Timing]) -> dict[str, list[float]]:
    """Return the shortest and longest seconds of every contender, a setting of the row."""
    return {name: timing.spread for name, timing in timings.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

"""One row of the benchmark table, and how two contenders are timed side by side."""

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
    """A figure with its goal.

    Attributes:
        bench: Name of the row.
        ours: What this package needed, or made: seconds, bytes, tokens per second, as ``settings["unit"]`` says.
        peer: The same of what it is compared with; ``None`` where there is nothing to compare with.
        ratio: The figure that the goal is about.
        goal: What the ratio should reach.
        goal_is: Whether the ratio should be ``at least`` or ``at most`` the goal.
        repeats: How often each side was measured; ``ours`` and ``peer`` are medians.
        settings: What was run, in words and numbers: model, lengths, dtype, unit, spread.
    """

    bench: str
    ours: Figure
    peer: Figure
    ratio: float
    goal: float
    goal_is: Literal["at least", "at most"]
    repeats: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal if self.goal_is == "at least" else self.ratio <= self.goal

    def record(self) -> dict[str, Any]:
        """The row as an object of ``bench.jsonl``; the goal's direction is one of its settings."""
        record = asdict(self)
        record["settings"] = {**record["settings"], "goal_is": record.pop("goal_is")}
        return record


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> list[float]:
        """The shortest and the longest."""
        return [round(min(self.seconds), 4), round(max(self.seconds), 4)]


def alternate(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times several things in turn: A B A B ..., after one round that does not count.

    Drift of the machine (heat, neighbours) then falls on all of them alike.

    Args:
        contenders: What to run, by name.
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
    """Shortest and longest seconds of every contender, a setting of the row."""
    return {name: timing.spread for name, timing in timings.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

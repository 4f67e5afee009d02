"""Row of the benchmark table, and timing of contenders side by side."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FEWEST = 3
"""Rounds that a comparison has even where its time is over, unless fewer are asked for."""


class SkippedError(Exception):
    """Reason why this machine cannot measure a row: a card or a library that it lacks."""


@dataclass(frozen=True)
class Row:
    """Figure with its goal.

    Attributes:
        bench: Name of the row.
        ours: Figure of this package, in the unit of ``settings["unit"]``: seconds, GiB, tokens per second.
        peer: Figure of the other side; ``None`` where there is none.
        ratio: The figure that the goal is about.
        goal: Goal of the ratio.
        goal_is: Whether the ratio should be ``at least`` or ``at most`` the goal.
        repeats: Rounds that were run; ``ours`` and ``peer`` are medians.
        settings: Settings of the run, in words and numbers: model, lengths, dtype, unit, spread. A row of several
            cases shows the one nearest to its goal, and has ``cases``: ours and peer of each, by name.
    """

    bench: str
    ours: float
    peer: float | None
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
class Rounds:
    """How often the sides of a row are run in turn.

    Attributes:
        most: Rounds, if there is time for them.
        seconds: Time of the row from its start, set-up included. A round that would not end in it is not begun,
            but for the first ``FEWEST``.
        tell: Is told what begins.
        begun: Start of the row, on the clock of ``time.monotonic``.
    """

    most: int = 5
    seconds: float = math.inf
    tell: Callable[[str], None] = lambda _: None
    begun: float = field(default_factory=time.monotonic)

    def has_time_for(self, done: int, longest: float) -> bool:
        """Return whether another round is to be run.

        Args:
            done: Rounds that were run.
            longest: Seconds of the longest of them.
        """
        if done >= self.most:
            return False
        return done < FEWEST or time.monotonic() - self.begun + longest <= self.seconds


@dataclass(frozen=True)
class Timing:
    """Seconds of every round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> list[float]:
        """Shortest and longest round."""
        return [round(min(self.seconds), 4), round(max(self.seconds), 4)]

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.seconds)


def alternate(
    contenders: dict[str, Callable[[], Any]], rounds: Rounds, warm: Collection[str] = ()
) -> dict[str, Timing]:
    """Time several things in turn: A B A B ..., after one round that does not count.

    Drift of the machine (heat, neighbours) then falls on all of them alike.

    Args:
        contenders: Functions to run, by name.
        rounds: Rounds that count.
        warm: Contenders that have run before, or need no run that does not count.
    """
    for number, (name, run) in enumerate(contenders.items()):
        if name not in warm:
            rounds.tell(f"warm-up {number + 1}/{len(contenders)}")
            _timed(run)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    done, longest = 0, 0.0
    while rounds.has_time_for(done, longest):
        rounds.tell(f"round {done + 1}/{rounds.most}")
        for name, run in contenders.items():
            seconds[name].append(_timed(run))
        done += 1
        longest = max(longest, sum(values[-1] for values in seconds.values()))
    return {name: Timing(values) for name, values in seconds.items()}


def spreads(timings: dict[str, Timing]) -> dict[str, list[float]]:
    """Return the shortest and longest seconds of every contender, a setting of the row."""
    return {name: timing.spread for name, timing in timings.items()}


def _timed(run: Callable[[], Any]) -> float:
    gc.collect()
    _wait_for_device()
    started = time.perf_counter()
    run()
    _wait_for_device()
    return time.perf_counter() - started


def _wait_for_device() -> None:
    torch: Any = sys.modules.get("torch")  # a row without torch has nothing to wait for
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()

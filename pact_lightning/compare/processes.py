"""Cells run side by side, each step as a process of its own; they end with this process, however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import FrameType

from pact_lightning.compare.steps import CellPlan, Step, facts_of_this_place

LOG = "log.txt"
TRIES = 2
"""Times that a cell is run which fails."""
GRACE_S = 120.0
"""Seconds that a cell may take to save itself after SIGTERM."""
_POLL_S = 0.1
_CHILD = """
from pact_lightning.environments.sandbox.limits import die_with_parent
die_with_parent()
from pact_lightning.cli.main import main
main()
"""


@dataclass
class _Running:
    cell: CellPlan
    step: Step
    process: subprocess.Popen[bytes]
    began: float


def run_cells(cells: Sequence[CellPlan], processes: int, tell: Callable[[str], None]) -> list[CellPlan]:
    """Run the cells that are not done; one that fails is run once more, then told, and the others go on.

    Args:
        cells: The cells; each runs its steps one after the other, and once the cell is done that it begins from.
        processes: Number of cells at the same time.
        tell: Takes a line about what happens.

    Returns:
        The cells that failed.

    Raises:
        SystemExit: A signal came; all children have ended, and the cells go on with the next call.
    """
    waiting = [cell for cell in cells if not cell.is_done]
    total, ended = len(waiting), 0
    facts = facts_of_this_place()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // processes))
    running: list[_Running] = []
    failed: list[CellPlan] = []
    tries: Counter[Path] = Counter()

    def progress() -> str:
        open_cells = [*waiting, *(each.cell for each in running)]
        left = seconds_left(open_cells, [cell for cell in cells if cell not in open_cells + failed], processes)
        return f"{ended} of {total}" + (f", about {_minutes(left)} left" if left else "")

    with _signals() as received:
        try:
            while (waiting or running) and not received:
                for cell in [cell for cell in waiting if cell.start in failed]:
                    waiting.remove(cell)
                    failed.append(cell)
                    ended += 1
                    tell(f"{progress()}; not run: {cell.folder} begins from {cell.start and cell.start.folder}")
                while len(running) < processes and (ready := _ready(waiting, running)) is not None:
                    waiting.remove(ready)
                    tries[ready.folder] += 1
                    running.append(_start(ready, next(step for step in ready.steps if not step.is_done()), threads))
                    tell(f"begins: {ready.folder}")
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    if each.process.returncode:
                        place = f"{each.step.cell / each.step.name}: {_last_line(each.step.cell)}"
                        if tries[each.cell.folder] < TRIES:
                            waiting.append(each.cell)
                            tell(f"failed, retrying: {place}")
                            continue
                        failed.append(each.cell)
                        ended += 1
                        tell(f"{progress()}; failed: {place}")
                        continue
                    each.step.finish(facts, time.monotonic() - each.began)
                    following = next((step for step in each.cell.steps if not step.is_done()), None)
                    if following is not None:
                        running.append(_start(each.cell, following, threads))
                    else:
                        ended += 1
                        tell(f"{progress()}; done: {each.cell.folder}")
                time.sleep(_POLL_S)
        finally:
            _stop(running)
    if received:
        tell(f"{signal.Signals(received[0]).name}: all cells are stopped; repeat the command to continue")
        raise SystemExit(128 + received[0])
    return failed


def _ready(waiting: Sequence[CellPlan], running: Sequence[_Running]) -> CellPlan | None:
    """Return the first cell that can begin; one whose start is not done yet cannot."""
    unfinished = {cell.folder for cell in waiting} | {each.cell.folder for each in running}
    ready = (cell for cell in waiting if cell.start is None or cell.start.folder not in unfinished)
    return next(ready, None)


def seconds_left(cells: Sequence[CellPlan], done: Sequence[CellPlan], processes: int) -> float | None:
    """Estimate how long cells will take, by those that are done: of their own method, else of all.

    Args:
        cells: The cells that are not done; running ones count in full.
        done: Cells that are done.
        processes: Number of cells at the same time.

    Returns:
        Seconds; ``None`` where none is done.
    """
    if not done:
        return None
    seconds: Mapping[str, list[float]] = {cell.method: [] for cell in done}
    for cell in done:
        seconds[cell.method].append(cell.seconds)
    usual = fmean(value for values in seconds.values() for value in values)
    return sum(fmean(seconds.get(cell.method) or [usual]) for cell in cells) / processes


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_processes(accelerator: str) -> int:
    """Return how many cells run at the same time by default: one per core, one alone on anything but a CPU."""
    return _cores() if accelerator == "cpu" else 1


def _start(cell: CellPlan, step: Step, threads: str) -> _Running:
    step.cell.mkdir(parents=True, exist_ok=True)
    with (step.cell / LOG).open("ab") as log:
        log.write(f"$ {step.command}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            start_new_session=True,  # a terminal's SIGINT comes here alone; the cells get a SIGTERM each
        )
    return _Running(cell, step, process, time.monotonic())


def _stop(running: Sequence[_Running]) -> None:
    """Let the cells save themselves and end."""
    for each in running:
        each.process.terminate()
    until = time.monotonic() + GRACE_S
    for each in running:
        try:
            each.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop; a second one acts as usual."""
    received: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, take)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(cell: Path) -> str:
    lines = (cell / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return f"{(errors or said)[-1]} (see {cell / LOG})"

"""Cells run side by side, each step as a process of its own; they end with this process, however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pact_lightning.compare.steps import CellPlan, Step, facts_of_this_place

LOG = "log.txt"
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
    """Run the cells that are not done; one that fails is told, and the others go on.

    Args:
        cells: The cells; each runs its steps one after the other.
        processes: Number of cells at the same time.
        tell: Takes a line about what happens.

    Returns:
        The cells that failed.

    Raises:
        SystemExit: A signal came; all children have ended, and the cells go on with the next call.
    """
    waiting = deque(cell for cell in cells if not cell.is_done)
    total, ended = len(waiting), 0
    facts = facts_of_this_place()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // processes))
    running: list[_Running] = []
    failed: list[CellPlan] = []
    with _signals() as received:
        try:
            while (waiting or running) and not received:
                while waiting and len(running) < processes:
                    cell = waiting.popleft()
                    running.append(_start(cell, next(step for step in cell.steps if not step.is_done()), threads))
                    tell(f"begins: {cell.folder}")
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    if each.process.returncode:
                        failed.append(each.cell)
                        ended += 1
                        place = each.step.cell / each.step.name
                        tell(f"{ended} of {total} failed: {place}: {_last_line(each.step.cell)}")
                        continue
                    each.step.finish(facts, time.monotonic() - each.began)
                    following = next((step for step in each.cell.steps if not step.is_done()), None)
                    if following is not None:
                        running.append(_start(each.cell, following, threads))
                    else:
                        ended += 1
                        tell(f"{ended} of {total} done: {each.cell.folder}")
                time.sleep(_POLL_S)
        finally:
            _stop(running)
    if received:
        tell(f"{signal.Signals(received[0]).name}: all cells are stopped; repeat the command to go on with them")
        raise SystemExit(128 + received[0])
    return failed


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

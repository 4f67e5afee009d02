"""Process of a row: a clean heap and clean imports, and a crash that ends this row only."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 4
"""A row is stopped once it takes so many times its seconds: it hangs, or the machine cannot measure it."""

_ROW, _ROUND, _SKIPPED, _FAILED = "bench-row: ", "bench-round: ", "bench-skipped: ", "bench-failed: "


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        record: The row, if it was measured.
        reason: Why it was not, in one line.
        skipped: Whether this machine lacks what the row needs; otherwise a row without a record has failed.
        seconds: Time that it took.
    """

    record: dict[str, Any] | None
    reason: str = ""
    skipped: bool = False
    seconds: float = 0.0


def measure(module: str, rounds: int, seconds: float, log: Path, tell: Callable[[str], None]) -> Outcome:
    """Run a row in a process of its own, with all processes that it starts.

    Args:
        module: Module with the row's function ``run``.
        rounds: Rounds, if there is time for them.
        seconds: Time for the row; at ``PATIENCE`` times as much it is stopped.
        log: File for what the process and its libraries write to stderr.
        tell: Is told what begins: a warm-up, a round.
    """
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.process", module, str(rounds), str(seconds)]
    log.parent.mkdir(parents=True, exist_ok=True)
    record, skipped, failed, stopped = None, "", "", threading.Event()
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as process,
    ):

        def stop() -> None:
            stopped.set()
            _end(process)

        timer = threading.Timer(PATIENCE * seconds, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith(_ROUND):
                    tell(line.removeprefix(_ROUND).strip())
                elif line.startswith(_ROW):
                    record = json.loads(line.removeprefix(_ROW))
                elif line.startswith(_SKIPPED):
                    skipped = line.removeprefix(_SKIPPED).strip()
                elif line.startswith(_FAILED):
                    failed = line.removeprefix(_FAILED).strip()
            process.wait()
        finally:
            timer.cancel()
            _end(process)
    took = time.monotonic() - begun
    if stopped.is_set():
        return Outcome(None, f"stopped after {took:.0f} s; it should take {seconds:g} s", seconds=took)
    if record is not None and process.returncode == 0:
        return Outcome(record, seconds=took)
    if skipped:
        return Outcome(None, skipped, skipped=True, seconds=took)
    return Outcome(None, f"{failed or _end_of(process.returncode)}; see {log}", seconds=took)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a row and what it started; a server of a row that was killed would run on."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_of(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status} and no row"
    name = signal.Signals(-status).name
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def main(module: str, rounds: int, seconds: float) -> None:
    """Run a row in this process; write it and its rounds to stdout, a line each."""
    from benchmarks.row import Rounds, SkippedError

    begun = time.monotonic()
    sys.excepthook = _tell_why

    def tell(text: str) -> None:
        print(_ROUND + text, flush=True)

    try:
        row = importlib.import_module(module).run(Rounds(rounds, seconds, tell, begun))
    except SkippedError as error:
        print(_SKIPPED + _in_one_line(error), flush=True)
        return
    from benchmarks.machine import machine  # imports torch, for which nobody waits in vain

    record: dict[str, Any] = row.record()
    record["settings"]["machine"] = machine()
    print(_ROW + json.dumps(record), flush=True)


def _tell_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(f"{_FAILED}{kind.__name__}: {_in_one_line(error)}", flush=True)
    sys.__excepthook__(kind, error, trace)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

"""Row ``neighbour``: the first phase of the quickstart beside a busy process, against idle cores."""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.row import Rounds, Row, Timing, alternate, spreads

_FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run(rounds: Rounds) -> Row:
    """Divide the phase's seconds beside a busy process by those on idle cores.

    Only the phase counts: imports and the policy's loading run on one thread in either case.
    """
    seconds: dict[str, list[float]] = {"beside": [], "idle": []}

    def idle() -> None:
        seconds["idle"].append(_phase())

    def beside() -> None:
        with _busy_core():
            seconds["beside"].append(_phase())

    alternate({"beside": beside, "idle": idle}, rounds, warm=("beside", "idle"))
    timings = {name: Timing(values) for name, values in seconds.items()}
    ours, peer = timings["beside"].median, timings["idle"].median
    settings = {
        "unit": "s",
        "ours_is": "first phase of recipes/quickstart.yaml beside one busy process",
        "peer_is": "the same on idle cores",
        "cores": os.cpu_count(),
        "spread": spreads(timings),
    }
    return Row("neighbour", ours, peer, ours / peer, 1.5, "at most", timings["idle"].rounds, settings)


@contextmanager
def _busy_core() -> Iterator[None]:
    """Keep one core busy, as ``stress-ng --cpu 1`` does."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _phase() -> float:
    """Run the phase, without validation, and return its seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in _FIXED_BY}
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "max_epochs": "1",
            "num_sanity_val_steps": "0",
            "limit_val_batches": "0",
            "logger.init_args.save_dir": folder,
        }
        options = [word for name, value in arguments.items() for word in (f"--trainer.{name}", value)]
        command = [sys.executable, "-m", "pact_lightning.cli.main", "fit", "-c", "recipes/quickstart.yaml", *options]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        (metrics,) = Path(folder).rglob("metrics.csv")
        with metrics.open(newline="", encoding="utf-8") as file:
            found = [float(row["time/phase"]) for row in csv.DictReader(file) if row.get("time/phase")]
    (seconds,) = found
    return seconds

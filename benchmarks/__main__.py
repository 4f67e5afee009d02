"""Command ``python -m benchmarks``: rows, each in a process of its own, gathered in ``build/bench.jsonl``."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.process import measure
from benchmarks.progress import Progress, clock
from benchmarks.table import heading_line, reason_line, row_line, write_into_page

ROWS = {
    "update_vs_trl": 150,
    "update_vs_trl_small": 45,
    "update_vs_trl_long": 110,
    "shared_prefix_vs_ideal": 170,
    "trace_vs_prompt_only": 85,
    "shared_system_prompt": 100,
    "head_memory": 70,
    "rollout_vs_trl": 115,
    "decode_vs_generate": 75,
    "padding": 10,
    "startup": 12,
    "neighbour": 120,
    "plan_error": 90,
}
"""Seconds that each row may take on two idle cores, set-up included; the sum is at most 20 minutes."""

OPTIONAL = {"rollout_vs_vllm": 120}
"""The same for rows that are skipped without a library that no user of the package needs; they come on top."""

_ALL = ROWS | OPTIONAL


def main() -> None:
    """Run the rows of the command line; exit status 1 if one could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="", help=f"comma-separated; all if left out: {', '.join(_ALL)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison, time allowing (default 5)")
    parser.add_argument("--out", type=Path, default=Path("build/bench.jsonl"), help="where the rows are kept")
    parser.add_argument("--page", type=Path, help="a page whose table is written anew from all rows kept; runs nothing")
    given = parser.parse_args()
    if given.page:
        kept = _read(given.out)
        write_into_page(given.page, [kept[name] for name in _ALL if name in kept])
        return
    names = [name.strip() for name in given.rows.split(",") if name.strip()] or list(_ALL)
    unknown = [name for name in names if name not in _ALL]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(_ALL)}")
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {given.repeats}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the row's process ends too
    failed = run_rows({name: _ALL[name] for name in names}, given.repeats, given.out)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def run_rows(rows: Mapping[str, float], rounds: int, out: Path, package: str = "benchmarks") -> list[str]:
    """Measure rows, print each in a line, and keep them; rows of earlier runs stay unless they are measured anew.

    Args:
        rows: Seconds that each may take, by name.
        rounds: Rounds of each comparison, time allowing.
        out: File of the rows kept. What a row's process says goes into a folder beside it.
        package: Where the rows' modules are.

    Returns:
        Rows that failed.
    """
    kept = _read(out)
    expected = {name: kept[name]["settings"]["seconds"] if name in kept else rows[name] for name in rows}
    commit, begun, failed = _commit(), time.monotonic(), []
    # Lines as wide as they are: a terminal wraps them, a log file keeps them.
    print(heading_line(), flush=True)
    with Progress(expected, Console(stderr=True)) as progress:
        for name, seconds in rows.items():
            progress.begin(name)
            log = out.with_suffix("") / f"{name}.log"
            outcome = measure(f"{package}.{name}", rounds, seconds, log, progress.tell)
            kept.pop(name, None)
            if outcome.record is None:
                print(reason_line(name, "skipped" if outcome.skipped else "failed", outcome.reason), flush=True)
                failed += [] if outcome.skipped else [name]
            else:
                kept[name] = outcome.record
                made = {"commit": commit, "date": f"{datetime.now(UTC):%Y-%m-%d}", "seconds": round(outcome.seconds)}
                kept[name]["settings"] |= made
                print(row_line(kept[name]), flush=True)
            _write(out, kept)
    print(f"{len(rows)} rows in {clock(time.monotonic() - begun)}; they are kept in {out}", flush=True)
    return failed


def _commit() -> str:
    """Return the commit of the checkout, with a ``+`` where files were changed since."""
    git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(git, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # not a checkout
    return found.stdout.strip()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # Rows of earlier versions of this program tell no commit.
    return {row["bench"]: row for row in rows if "commit" in row["settings"]}


def _write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")


if __name__ == "__main__":
    main()

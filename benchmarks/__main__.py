"""Command ``python -m benchmarks``: rows, each in a process of its own, gathered in ``build/bench.jsonl``."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import machine
from benchmarks.table import bench_table, write_into_page

ROWS = (
    "update_vs_trl",
    "update_vs_trl_small",
    "shared_prefix_vs_ideal",
    "trace_vs_prompt_only",
    "head_memory",
    "rollout_vs_trl",
    "decode_vs_generate",
    "padding",
    "startup",
    "plan_error",
)
_RESULT = "bench-row: "


def main() -> None:
    """Run the rows of the command line; exit status 1 if one could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="", help=f"comma-separated; all if left out: {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison (default 5)")
    parser.add_argument("--out", type=Path, default=Path("build/bench.jsonl"), help="where the rows are kept")
    parser.add_argument("--page", type=Path, help="a page whose table is written anew from all rows kept; runs nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(_RESULT + json.dumps(_measure(given.one, given.repeats)))
        return
    console = Console()
    kept = _read(given.out)
    if given.page:
        write_into_page(given.page, [kept[name] for name in ROWS if name in kept])
        return
    names = [name.strip() for name in given.rows.split(",") if name.strip()] or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {given.repeats}")
    failed = []
    for name in names:
        kept.pop(name, None)
        with console.status(f"measuring {name}"):
            row = _in_own_process(name, given.repeats)
        if row is None:
            failed.append(name)
        else:
            kept[name] = row
            goal = f"{row['settings']['goal_is']} {row['goal']:g}"
            console.print(f"{name}: {row['ratio']:.3g}, goal {goal}", highlight=False)
        _write(given.out, kept)
    console.print(bench_table([kept[name] for name in names if name in kept]))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _measure(name: str, repeats: int) -> dict[str, Any]:
    record: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run(repeats).record()
    record["settings"]["machine"] = machine()
    return record


def _in_own_process(name: str, repeats: int) -> dict[str, Any] | None:
    """Measure a row with a clean heap and clean imports; a crash ends this row only."""
    command = [sys.executable, "-m", "benchmarks", "--one", name, "--repeats", str(repeats)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    for line in process.stdout.splitlines():
        if line.startswith(_RESULT):
            row: dict[str, Any] = json.loads(line.removeprefix(_RESULT))
            return row
    return None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["bench"]: row for row in rows}


def _write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(rows[name]) for name in ROWS if name in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()

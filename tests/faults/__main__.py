"""Injects every fault; exit status 0 only if all of it held. ``PYTHONPATH=tests python -m faults --help``."""

import argparse
import importlib
import sys
import time
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from faults.page import HEADINGS, cells, write_into_pages

GROUPS = (
    "tools",
    "environments",
    "servers",
    "samplers",
    "throughput",
    "phases",
    "degenerate",
    "numbers",
    "resume",
    "text",
)
"""Modules of this package, each with a function ``run(times)`` that gives a list of FaultResult."""


def main():
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--groups", default="", help=f"comma-separated; all if left out: {', '.join(GROUPS)}")
    parser.add_argument("--times", type=int, default=20, help="how often each fault is injected (default 20)")
    parser.add_argument(
        "--pages", type=Path, nargs="+", default=[], help="pages whose tables are written anew from what was run"
    )
    given = parser.parse_args()
    groups = [name.strip() for name in given.groups.split(",") if name.strip()] or list(GROUPS)
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        parser.error(f"unknown groups {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if given.times < 1:
        parser.error(f"--times must be at least 1, not {given.times}")
    console = Console()
    results = []
    started = time.monotonic()
    for name in groups:
        with console.status(f"injecting {name}"):
            found = importlib.import_module(f"faults.{name}").run(given.times)
        table = Table(*HEADINGS, title=name)
        for result in found:
            table.add_row(*cells(result))
        console.print(table)
        results += found
    if given.pages:
        some = "" if groups == list(GROUPS) else f" GROUPS={','.join(groups)}"
        how = f"`make faults{some} TIMES={given.times}`, {date.today().isoformat()}"
        write_into_pages(given.pages, results, how)
    bad = [result for result in results if not result.ok]
    times = sum(result.times for result in results)
    print(
        f"{len(results)} faults, injected {times} times, in {time.monotonic() - started:.0f} s; {len(bad)} did not hold"
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

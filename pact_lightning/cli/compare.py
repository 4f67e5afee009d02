"""Command ``pact-lightning compare``: finished runs side by side, or a study that is run first."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pact_lightning.cli.errors import end

if TYPE_CHECKING:
    from pact_lightning.compare.results import Cell

_METRIC = "answer_correct"


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``compare``.
    """
    given = _parser().parse_args(list(arguments))
    try:
        _compare_runs(given)
    except (ValueError, OSError, ImportError, TypeError) as error:
        end(error, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning compare",
        usage="pact-lightning compare [NAME=]RUN [[NAME=]RUN ...] [options]",
        description="Compares finished runs: means with 95 % intervals, paired differences and budgets, as Markdown. "
        "Runs of the same name are seeds of one method; the n-th run of a name is paired with the n-th of each other "
        "name, and tasks are matched by their ids.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="[NAME=]RUN", help="folder of a run; NAME is by default the folder")
    parser.add_argument("--metric", help=f"any metric of an evaluation (default {_METRIC})")
    parser.add_argument("--against", help="name that the others are compared with; by default the first one")
    parser.add_argument("--output", type=Path, help="folder for comparison.md, .csv, curves.csv and pictures")
    return parser


def _compare_runs(given: argparse.Namespace) -> None:
    from pact_lightning.compare.runs import read_runs
    from pact_lightning.compare.tables import report

    if not given.runs:
        raise ValueError("name the folders of the runs to compare, as in pact-lightning compare runs/a/version_0 ...")
    cells = read_runs(given.runs)
    metric, against = given.metric or _METRIC, given.against or cells[0].method
    sys.stdout.write(report(cells, metric, against))
    if given.output is not None:
        _write(cells, metric, against, given.output)


def _write(cells: Sequence["Cell"], metric: str, against: str, folder: Path) -> None:
    from pact_lightning.compare.runs import write_comparison

    try:
        write_comparison(cells, metric, against, folder)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the tables are there all the same

"""The comparison of finished runs at the command line: printed, and written to files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.compare.results import Cell
from pact_lightning.compare.runs import read_runs, write_comparison
from pact_lightning.compare.tables import report

_METRIC = "answer_correct"


def compare_runs(given: argparse.Namespace) -> None:
    """Print the comparison of finished runs, and write it where that is asked for.

    Args:
        given: The command's options.

    Raises:
        ValueError: The runs cannot be compared.
        OSError: One is not there.
    """
    if given.processes is not None or given.dry_run:
        raise ValueError("--processes and --dry_run are for a study, which is named by -c; these runs are finished")
    if not given.runs:
        raise ValueError("name the folders of the runs to compare, as in pact-lightning compare runs/a/version_0 ...")
    cells = read_runs(given.runs)
    metric, against = given.metric or _METRIC, given.against or cells[0].method
    sys.stdout.write(report(cells, metric, against))
    if given.output is not None:
        write(cells, metric, against, given.output)


def write(cells: Sequence[Cell], metric: str, against: str, folder: Path) -> None:
    """Write the comparison; where pictures cannot be drawn, a line says so."""
    try:
        write_comparison(cells, metric, against, folder)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the tables are there all the same

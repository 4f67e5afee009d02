"""Command ``pact-lightning report``: one HTML page of runs, and the options that ``view`` shares."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pact_lightning.cli.errors import end

if TYPE_CHECKING:
    from pact_lightning.report.content import Reader

FILE = "report.html"


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``report``.
    """
    parser = run_parser(
        "report",
        "Writes curves, scores and trajectories of runs as one HTML page, which needs no network and no other file.",
    )
    parser.add_argument("--output", type=Path, help=f"the page (default: RUN/{FILE}; {FILE} for several runs)")
    given = parser.parse_args(list(arguments))
    try:
        _write(given)
    except (ValueError, OSError, ImportError, TypeError) as error:
        end(error, 2)


def _write(given: argparse.Namespace) -> None:
    from pact_lightning.report.page import page
    from pact_lightning.utils.files import whole_file

    reader = reader_of(given)
    output = given.output or (reader.runs[0].folder / FILE if len(reader.runs) == 1 else Path(FILE))
    text = page(title_of(reader), time.strftime("%Y-%m-%d %H:%M"), reader.read())
    with whole_file(output) as file:
        file.write(text)
    print(f"{output} ({len(text) / 1e6:.1f} MB)")  # noqa: T201  # what the command leaves


def run_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that ``report`` and ``view`` share."""
    parser = argparse.ArgumentParser(
        prog=f"pact-lightning {command}",
        description=description,
        epilog="Runs of the same name are seeds of one method, as in `pact-lightning compare`.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="folder of a run; NAME is by default the folder")
    parser.add_argument(
        "--tasks",
        metavar="FILE",
        help="task file, or .yaml file that names a task source: its references and expert traces are shown next to "
        "the trajectories (default: those that the run's recipe names, if they are bundled or in a task file)",
    )
    parser.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        help="the largest number of trajectories in the page, a share of every file (default 5000)",
    )
    return parser


def reader_of(given: argparse.Namespace) -> "Reader":
    """Make the reader of the runs that the options name.

    Raises:
        ValueError: A run is named twice, or an option is wrong.
        OSError: A folder or file is not there.
    """
    from pact_lightning.report.content import MOST_ROLLOUTS, Reader

    tasks = None
    if given.tasks is not None:
        from pact_lightning.teacher.stored import load_tasks

        tasks = load_tasks(given.tasks)
    return Reader(given.runs, MOST_ROLLOUTS if given.rollouts is None else given.rollouts, tasks)


def title_of(reader: "Reader") -> str:
    """Return the title of the page of some runs."""
    return ", ".join(dict.fromkeys(run.name for run in reader.runs))

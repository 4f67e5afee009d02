"""Command ``pact-lightning compare``: finished runs side by side, or a study that is run first."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.cli.errors import end


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``compare``.
    """
    given = _parser().parse_args(list(arguments))
    try:
        if given.config is None:
            from pact_lightning.cli.compare_report import compare_runs

            compare_runs(given)
            return
        from pact_lightning.cli.compare_study import compare_study

        status = compare_study(given)
    except (ValueError, OSError, ImportError, TypeError, argparse.ArgumentError) as error:
        end(error, 2)
    if status:
        sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning compare",
        usage="pact-lightning compare [NAME=]RUN [[NAME=]RUN ...] [options]\n"
        "       pact-lightning compare -c STUDY [options]",
        description="Compares finished runs, or runs a study of methods, regimes and seeds and compares those: means "
        "with 95 % intervals, paired differences and budgets, as Markdown. "
        "Runs of the same name are seeds of one method; the n-th run of a name is paired with the n-th of each other "
        "name, and tasks are matched by their ids.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="[NAME=]RUN", help="folder of a run; NAME is by default the folder")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="STUDY", help="a study's file, in place of runs (default: none)"
    )
    parser.add_argument("--metric", help="any metric of an evaluation (default: the study's, else answer_correct)")
    parser.add_argument(
        "--against", help="name that the others are compared with (default: the study's, else the first)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for comparison.md, .csv, curves.csv and pictures (default: the study's)"
    )
    parser.add_argument(
        "--processes",
        "--workers",
        type=int,
        help="cells of a study that run at the same time (default: the study's, else one per core, or one on a GPU)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands of a study, and run nothing")
    return parser

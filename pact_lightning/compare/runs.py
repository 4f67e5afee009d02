"""Runs named at a command line as the cells of a comparison, and the files that a comparison leaves."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pact_lightning.compare.pictures import draw
from pact_lightning.compare.results import Cell, read_cost, read_evaluations
from pact_lightning.compare.tables import (
    COLUMNS,
    CURVE_COLUMNS,
    RUN_COLUMNS,
    curve_rows,
    report,
    run_rows,
    tidy_rows,
)
from pact_lightning.utils.csv_rows import write_rows
from pact_lightning.utils.files import whole_file

TABLE, TIDY, RUNS, CURVES = "comparison.md", "comparison.csv", "runs.csv", "curves.csv"


class NamedRun(NamedTuple):
    """Run as it is named at a command line.

    Attributes:
        name: Its name, by default its folder as it was given.
        seed: Runs of the same name before it.
        folder: Its folder.
    """

    name: str
    seed: int
    folder: Path


def name_runs(named: Sequence[str]) -> list[NamedRun]:
    """Return the names and folders of runs; nothing is read.

    Args:
        named: The runs, each as ``FOLDER`` or ``NAME=FOLDER``. The n-th one of a name gets the seed n, counted from 0.

    Raises:
        ValueError: A run is named twice.
    """
    runs: list[NamedRun] = []
    seen: dict[Path, str] = {}
    count: Counter[str] = Counter()
    for word in named:
        name, equals, place = word.partition("=")
        if Path(word).exists() or not equals:  # a folder may have such a sign in its own name
            name, place = word.rstrip("/"), word
        folder = Path(place)
        if folder.resolve() in seen:
            raise ValueError(f"{word} and {seen[folder.resolve()]} are the same run; list each once")
        seen[folder.resolve()] = word
        runs.append(NamedRun(name, count[name], folder))
        count[name] += 1
    return runs


def read_runs(named: Sequence[str]) -> list[Cell]:
    """Read runs, each named as :func:`name_runs` takes it.

    Args:
        named: The runs.

    Raises:
        FileNotFoundError: A folder is not there, or no run's.
        ValueError: A run is named twice, or its rollouts have no scores.
    """
    return [Cell(run.name, run.seed, read_evaluations(run.folder), read_cost(run.folder)) for run in name_runs(named)]


def write_comparison(cells: Sequence[Cell], metric: str, against: str, folder: Path) -> list[Path]:
    """Write the comparison: Markdown, three CSV files, and pictures.

    Args:
        cells: The runs.
        metric: The metric of table and pictures; the CSV files have all.
        against: The method that the others are compared with.
        folder: Where the files go.

    Returns:
        The pictures.

    Raises:
        ModuleNotFoundError: Pictures need matplotlib; all the rest is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / TABLE) as file:
        file.write(report(cells, metric, against))
    write_rows(folder / TIDY, list(tidy_rows(cells)), COLUMNS)
    write_rows(folder / RUNS, list(run_rows(cells)), RUN_COLUMNS)
    write_rows(folder / CURVES, list(curve_rows(cells)), CURVE_COLUMNS)
    return draw(cells, metric, against, folder)

"""Table of several quickstart runs, from their ``metrics.csv`` files; see ``make benchmark-quickstart``."""

import csv
import sys
from pathlib import Path

METRIC = "val/answer_correct"


def scores(path: Path) -> list[float]:
    """Answer correctness of every validation of a run, oldest first.

    Raises:
        ValueError: The run has fewer than two validations.
    """
    with path.open(newline="", encoding="utf-8") as file:
        found = [float(row[METRIC]) for row in csv.DictReader(file) if row.get(METRIC)]
    if len(found) < 2:
        raise ValueError(f"{path} has {len(found)} values of {METRIC}; a run has one before and one after training")
    return found


def main(paths: list[Path]) -> None:
    """Print one row per run."""
    lines = ["| run | before | after | change |", "|---|---|---|---|"]
    for path in paths:
        first, *_, last = scores(path)
        lines.append(f"| {path.parent.parent.name} | {first:.1%} | {last:.1%} | {100 * (last - first):+.1f} points |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

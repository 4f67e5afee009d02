"""The rows of a ``metrics.csv``: read, written whole, and compared between runs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pact_lightning.whole_files import whole_file

TIMED_FOLDERS = ("time/", "perf/")
TIMED = ("_seconds", "/seconds", "_per_second", "tool_share")
"""What differs between two runs of the same thing: how long it took, and what is computed from that."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file by column; a last line that was cut off is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))


def write_rows(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Writes a file whole or not at all; values of other columns are left out."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def is_timed(column: str) -> bool:
    """Whether a column tells of durations, so that it differs even between two runs that did the same."""
    return column.startswith(TIMED_FOLDERS) or column.endswith(TIMED)


def comparable(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Rows without what :func:`is_timed` names and without empty cells."""
    return [{name: value for name, value in row.items() if value and not is_timed(name)} for row in rows]

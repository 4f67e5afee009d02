"""Tables in CSV files: rows by column, read without a last line that was cut off, written whole or not at all."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pact_lightning.utils.files import whole_file


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file by column, without a last line that was cut off."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))


def write_rows(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Write a file whole or not at all; values of other columns are left out."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)

"""``metrics.csv`` of a run that may be resumed: no row is lost, none is written twice, no kill leaves half a file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_warn

from pact_lightning.utils.csv_rows import read_rows, write_rows

TIMED_FOLDERS = ("time/", "perf/")
TIMED = ("_seconds", "/seconds", "_per_second", "tool_share")
"""Endings of columns that differ between two runs of the same thing: durations, and what is computed from them."""


def is_timed(column: str) -> bool:
    """Return whether a column holds durations, which differ even between two runs that did the same."""
    return column.startswith(TIMED_FOLDERS) or column.endswith(TIMED)


def comparable(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Drop timed columns (:func:`is_timed`) and empty cells from rows."""
    return [{name: value for name, value in row.items() if value and not is_timed(name)} for row in rows]


class MetricsFile(ExperimentWriter):
    """A ``CSVLogger``'s writer that never rewrites in place.

    An earlier file is left alone until it is known how much of it a resumed run keeps.

    Args:
        log_dir: The folder of ``metrics.csv``.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        self.begun = False

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning's writer deletes the file here, before anything is known of a checkpoint."""

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.metrics_file_path)

    def begin(self, keep: int = 0) -> None:
        """Keep so many rows of an earlier file; the later ones belong to a future that is undone.

        Args:
            keep: Rows that the resumed checkpoint knows of.
        """
        self.begun = True
        if not self.path.exists():
            return
        if not keep and self.path.is_file():
            rank_zero_warn(f"{self.path} is from an earlier run and is overwritten")
            self.path.unlink()
            return
        rows = self._readable_rows()
        if len(rows) < keep:
            rank_zero_warn(f"{self.path} holds {len(rows)} rows, but the checkpoint knows of {keep}; some are lost")
        kept = rows[:keep]
        self.metrics_keys = sorted({name for row in kept for name, value in row.items() if value})
        write_rows(self.path, kept, self.metrics_keys)
        self.rows = len(kept)

    def _readable_rows(self) -> list[dict[str, str]]:
        """Read the rows; what is no table is put aside, and told."""
        try:
            rows = read_rows(self.path)
            if all(name is not None and value is not None for row in rows for name, value in row.items()):
                return rows
            problem: object = "rows differ in their number of columns"
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problem = error
        aside = self.path.with_name(f"{self.path.name}.damaged")
        self.path.replace(aside)
        rank_zero_warn(f"{self.path} is not a table of metrics ({problem}); it is now {aside.name}")
        return []

    def begin_behind(self) -> None:
        """Keep an earlier file as it is and append to it: an evaluation undoes no run."""
        self.begun = True
        if self.path.exists():
            self.begin(keep=len(self._readable_rows()) or 1)

    def saved_rows(self) -> int:
        """Write the rows that are not written yet, and count all."""
        self.save()
        return self.rows

    def save(self) -> None:
        """Append the rows that are not written yet."""
        if not self.begun:
            return
        count = len(self.metrics)
        super().save()
        self.rows += count

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        write_rows(self.path, read_rows(self.path), fieldnames)

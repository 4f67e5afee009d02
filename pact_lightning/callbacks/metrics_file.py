"""``metrics.csv``, gone on with: no row is lost, none is written twice, no kill leaves half a file."""

from pathlib import Path

from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_warn

from pact_lightning.metric_rows import read_rows, write_rows


class MetricsFile(ExperimentWriter):
    """Writes for a ``CSVLogger`` as its own writer does, but never rewrites in place.

    An earlier file is left alone until it is known how much of it a resumed run keeps.

    Args:
        log_dir: The folder of ``metrics.csv``.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        self.begun = False

    def _check_log_dir_exists(self) -> None:
        """Lightning's writer deletes the file here, before anything is known of a checkpoint."""

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.metrics_file_path)

    def begin(self, keep: int = 0) -> None:
        """Decides what of an earlier file stays: so many rows of its start; further rows are of a future undone.

        Args:
            keep: Rows that the resumed checkpoint knows of.
        """
        self.begun = True
        if not self.path.is_file():
            return
        if not keep:
            rank_zero_warn(f"{self.path} is of an earlier run and is written anew")
            self.path.unlink()
            return
        rows = read_rows(self.path)
        if len(rows) < keep:
            rank_zero_warn(f"{self.path} holds {len(rows)} rows, but the checkpoint knows of {keep}; some are lost")
        kept = rows[:keep]
        self.metrics_keys = sorted({name for row in kept for name, value in row.items() if value})
        write_rows(self.path, kept, self.metrics_keys)
        self.rows = len(kept)

    def begin_behind(self) -> None:
        """Keeps an earlier file as it is and goes on behind it: an evaluation undoes no run."""
        self.begun = True
        if self.path.is_file():
            self.begin(keep=len(read_rows(self.path)))

    def saved_rows(self) -> int:
        """Writes what is not written yet, and counts all rows."""
        self.save()
        return self.rows

    def save(self) -> None:
        """Appends the rows that are not written yet."""
        if not self.begun:
            return
        count = len(self.metrics)
        super().save()
        self.rows += count

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        write_rows(self.path, read_rows(self.path), fieldnames)

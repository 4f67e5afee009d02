"""Task files in the package's own format: one JSON object a line."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pact_lightning.tasks.environment_tools import EnvironmentTools
from pact_lightning.tasks.json_lines import MAX_LINE_MB, read_json_lines, scan_json_lines
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.tasks.scan import Scanned, scan_records, tasks_of
from pact_lightning.tasks.schema import Task
from pact_lightning.whole_files import write_json_lines

__all__ = ["JsonlTasks", "read_json_lines", "write_jsonl"]


class JsonlTasks:
    """Tasks from a JSON Lines file; see :func:`pact_lightning.tasks.record.task_from_json` for the fields.

    Args:
        path: The file, ``.jsonl`` or ``.jsonl.gz``. Blank lines are skipped.
        limit: Load at most this many tasks, from the start; ``None`` for all.
        max_line_mb: Longest line in MiB.
    """

    def __init__(self, path: str | Path, limit: int | None = None, max_line_mb: int = MAX_LINE_MB) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"limit is a number of tasks, at least 0, or null for all; got {limit}")
        self.path = Path(path)
        self.limit = limit
        self.max_line_mb = max_line_mb

    def load(self) -> Sequence[Task]:
        """Reads and checks the tasks, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A line is not a well-formed task, or repeats an id; the error names file, line and field.
        """
        return list(islice(tasks_of(self.scan()), self.limit))

    def scan(self) -> Iterator[Scanned]:
        """Every line as a task or a mistake, whatever ``limit`` says; see :mod:`pact_lightning.tasks.scan`."""
        return scan_records(self.path, scan_json_lines(self.path, self.max_line_mb), _reader())


def _reader() -> Callable[[int, Any], Task]:
    known = EnvironmentTools()  # each environment is asked for its tools once
    return lambda _, record: task_from_json(record, known)


def write_jsonl(path: str | Path, tasks: Iterable[Task]) -> None:
    """Writes tasks, one a line, so that :class:`JsonlTasks` reads the same tasks back.

    Args:
        path: The file, compressed where its name ends in ``.gz``; written whole or not at all.
        tasks: The tasks; they may be made while they are written.
    """
    write_json_lines(Path(path), map(task_to_json, tasks))

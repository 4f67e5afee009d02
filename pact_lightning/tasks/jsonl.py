"""Task files in the package's own format: one JSON object a line."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pact_lightning.tasks.checks import TaskFieldError, TaskFileError
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.tasks.schema import Task


class JsonlTasks:
    """Tasks from a JSON Lines file; see :func:`pact_lightning.tasks.record.task_from_json` for the fields.

    Args:
        path: The file, ``.jsonl`` or ``.jsonl.gz``. Blank lines are skipped.
        limit: Load at most this many tasks, from the start; ``None`` for all.
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path = Path(path)
        self.limit = limit

    def load(self) -> Sequence[Task]:
        """Reads and checks the tasks, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A line is not a well-formed task, or repeats an id; the error names file, line and field.
        """
        tasks: list[Task] = []
        first_lines: dict[str, int] = {}
        for line, record in read_json_lines(self.path):
            if self.limit is not None and len(tasks) >= self.limit:
                break
            try:
                task = task_from_json(record)
            except TaskFieldError as error:
                raise TaskFileError(self.path, line, error.problem, error.field) from error
            if task.id in first_lines:
                problem = f"{task.id!r} is already the id of line {first_lines[task.id]}"
                raise TaskFileError(self.path, line, problem, "id")
            first_lines[task.id] = line
            tasks.append(task)
        return tasks


def write_jsonl(path: str | Path, tasks: Iterable[Task]) -> None:
    """Writes tasks, one a line, so that :class:`JsonlTasks` reads the same tasks back."""
    with Path(path).open("w", encoding="utf-8") as file:
        for task in tasks:
            file.write(json.dumps(task_to_json(task), ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a ``.jsonl`` or ``.jsonl.gz`` file.

    Yields:
        The line, counted from 1, and its JSON value; blank lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: A line is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; paths count from the folder in which the command is started")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                problem = f"is not valid JSON: {error.msg} at character {error.pos}"
                raise TaskFileError(path, line, problem) from error
            yield line, value

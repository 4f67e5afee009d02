"""From the records of a file to tasks, one at a time, each with its line and what is wrong with it.

Task files in the package's own format: one JSON object a line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pact_lightning.tasks.record import EnvironmentTools, task_from_json, task_to_json
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import TaskFieldError, TaskFileError
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.json_lines import MAX_LINE_MB, JsonLine, scan_json_lines


@dataclass(frozen=True, slots=True)
class Scanned:
    """What one record is: a task or a mistake.

    Attributes:
        line: The line or row on which it stands.
        task: The task; ``None`` where there is an error.
        error: What is wrong with it.
    """

    line: int
    task: Task | None = None
    error: TaskFileError | None = None


@runtime_checkable
class ScannableSource(Protocol):
    """A task source that can go on after a mistake."""

    def scan(self) -> Iterator[Scanned]:
        """Every chosen record as a task or a mistake, in order."""
        ...


def scan_records(
    path: str | Path,
    lines: Iterable[JsonLine],
    read: Callable[[int, Any], Task | None],
    *,
    unit: str = "line",
) -> Iterator[Scanned]:
    """Makes tasks of records. A task whose id is already another's is a mistake.

    Args:
        path: Where they stand, for the errors.
        lines: The records.
        read: Makes a task of a record and its place among the records, counted from 0; ``None`` where it is not
            wanted. It may raise ``TaskFieldError``.
        unit: What the records are counted in, for the errors.
    """
    first_lines: dict[str, int] = {}
    for index, line in enumerate(lines):
        if line.error is not None:
            yield Scanned(line.number, error=line.error)
            continue
        try:
            task = read(index, line.value)
            if task is None:
                continue
            first = first_lines.setdefault(task.id, line.number)
            if first != line.number:
                raise TaskFieldError("id", f"{task.id!r} is already the id of {unit} {first}")
        except TaskFieldError as error:
            wrong = TaskFileError(path, line.number, error.problem, error.field, unit=unit)
            wrong.__cause__ = error
            yield Scanned(line.number, error=wrong)
        else:
            yield Scanned(line.number, task)


def tasks_of(scanned: Iterable[Scanned]) -> Iterator[Task]:
    """The tasks.

    Raises:
        TaskFileError: At the first mistake.
    """
    for entry in scanned:
        if entry.error is not None:
            raise entry.error
        assert entry.task is not None
        yield entry.task


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
        """Every line as a task or a mistake, whatever ``limit`` says; see :mod:`pact_lightning.tasks.jsonl`."""
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

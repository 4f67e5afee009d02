"""Task files in the package's own format, one JSON object a line, and the scan that all task sources share.

:func:`scan_records` turns the records of any file into tasks, one at a time, each with its line and its mistakes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pact_lightning.tasks.record import EnvironmentTools, check_task, task_from_json, task_to_json, without_table_nulls
from pact_lightning.types.task import Task, TaskPlace, TaskSource
from pact_lightning.utils.errors import TaskFieldError, TaskFileError
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.json_lines import MAX_LINE_MB, JsonLine, scan_json_lines


@dataclass(frozen=True, slots=True)
class Scanned:
    """One record: a task, or the mistakes in it.

    Attributes:
        line: The line, row or item on which it stands.
        task: The task; ``None`` where there are mistakes.
        errors: The mistakes, in the record's order.
    """

    line: int
    task: Task | None = None
    errors: tuple[TaskFileError, ...] = ()


@runtime_checkable
class ScannableSource(Protocol):
    """A task source that can continue after a mistake."""

    def scan(self) -> Iterator[Scanned]:
        """Yield every chosen record as a task or its mistakes, in order."""
        ...


def scan_records(
    path: str | Path,
    lines: Iterable[JsonLine],
    read: Callable[[int, Any], Task | None],
    *,
    unit: str = "line",
) -> Iterator[Scanned]:
    """Make tasks of records. A task whose id is already another's is a mistake.

    Args:
        path: Where they stand, for the errors.
        lines: The records.
        read: Makes a task of a record and its place among the records, counted from 0; ``None`` where it is not
            wanted. It may raise ``TaskFieldError``.
        unit: The unit in which the records are counted, for the errors.
    """
    first_lines: dict[str, int] = {}
    for index, line in enumerate(lines):
        if line.error is not None:
            yield Scanned(line.number, errors=(line.error,))
            continue
        try:
            task = read(index, line.value)
            if task is None:
                continue
            first = first_lines.setdefault(task.id, line.number)
            if first != line.number:
                raise TaskFieldError("id", f"{task.id!r} is already the id of {unit} {first}")
        except TaskFieldError as error:
            mistakes = (error, *error.further)
            errors = [TaskFileError(path, line.number, each.problem, each.field, unit=unit) for each in mistakes]
            errors[0].__cause__ = error
            yield Scanned(line.number, errors=tuple(errors))
        else:
            yield Scanned(line.number, replace(task, place=TaskPlace(str(path), line.number, unit)))


def tasks_of(scanned: Iterable[Scanned]) -> Iterator[Task]:
    """Yield the tasks of a scan.

    Raises:
        TaskFileError: At the first mistake.
    """
    for entry in scanned:
        if entry.task is None:
            raise entry.errors[0]
        yield entry.task


def scan_source(source: TaskSource | Sequence[Task]) -> Iterator[Scanned]:
    """Return every record of a source; the tasks of one that can only load are checked here, and counted from 0.

    Raises:
        TypeError: It is neither a source nor a list of tasks.
    """
    if isinstance(source, ScannableSource):
        return source.scan()
    if not isinstance(source, TaskSource | Sequence):
        raise TypeError(
            f"{type(source).__name__} is no task source: give an object with a method load() that returns "
            "pact_lightning.Task objects, or a list of them"
        )
    tasks = (JsonLine(n, task) for n, task in enumerate(source.load() if isinstance(source, TaskSource) else source))
    return scan_records(type(source).__name__, tasks, _checked, unit="task")


def load_source(source: TaskSource | Sequence[Task]) -> list[Task]:
    """Load the tasks of a source, checked by the rules of a task file.

    Args:
        source: The source, or the tasks themselves.

    Raises:
        TaskFileError: A task is wrong, or what the source gives is none.
        TypeError: It is neither a source nor a list of tasks.
    """
    if isinstance(source, TaskSource) and isinstance(source, ScannableSource):
        return list(source.load())
    return list(tasks_of(scan_source(source)))


def _checked(index: int, task: Any) -> Task:
    del index
    if not isinstance(task, Task):
        raise TaskFieldError("(the task)", f"must be a pact_lightning.Task, got {type(task).__name__}")
    check_task(task)
    return task


class JsonlTasks:
    """Tasks from a JSON Lines file; see :class:`pact_lightning.tasks.fields.TaskRecord` for the fields.

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
        """Read and check the tasks, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A line is not a well-formed task, or repeats an id; the error names file, line and field.
        """
        return list(islice(tasks_of(self.scan()), self.limit))

    def scan(self) -> Iterator[Scanned]:
        """Yield every line as a task or its mistakes, whatever ``limit`` says."""
        known = EnvironmentTools()  # each environment is asked for its tools once
        lines = scan_json_lines(self.path, self.max_line_mb)
        return scan_records(self.path, lines, lambda _, record: task_from_json(without_table_nulls(record), known))


def write_jsonl(path: str | Path, tasks: Iterable[Task]) -> None:
    """Write tasks, one a line; :class:`JsonlTasks` reads the same tasks back.

    Args:
        path: The file, compressed where its name ends in ``.gz``; written whole or not at all.
        tasks: The tasks; they may be made while they are written.
    """
    write_json_lines(Path(path), map(task_to_json, tasks))

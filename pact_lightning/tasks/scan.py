"""From the records of a file to tasks, one at a time, each with its line and what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pact_lightning.tasks.checks import TaskFieldError, TaskFileError
from pact_lightning.tasks.json_lines import JsonLine
from pact_lightning.tasks.schema import Task


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

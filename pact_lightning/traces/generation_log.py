"""The log of generated traces: one line per finished task, so that a run goes on where it was stopped."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pact_lightning.append_log import AppendLog
from pact_lightning.tasks.checks import TaskFieldError
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.tasks.schema import Task
from pact_lightning.traces.schema import ExpertTrace


class GenerationLog:
    """What was generated so far, one line per finished task, under a first line with the settings.

    Args:
        path: The file; see :class:`~pact_lightning.append_log.AppendLog`.
        settings: All that decides what a teacher is asked. A log of other settings is refused.

    Attributes:
        path: The file.
        finished: The newest record of each task, by its fingerprint.
        torn: Whether a torn last line was removed.

    Raises:
        ValueError: The file is the log of other settings, or no such log.
        TaskFileError: A line is not JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))  # as the file gives them back
        self.path = path
        self._log = AppendLog(path)
        self.torn = self._log.torn
        if not self._log.records:
            self._log.append({"settings": settings})
        else:
            first = self._log.records[0]
            made_by = first.get("settings") if isinstance(first, dict) else None
            if made_by != settings:
                self._log.close()
                raise ValueError(_other_settings(path, made_by, settings))
        self.finished: dict[str, Mapping[str, Any]] = {
            record["fingerprint"]: record for record in self._log.records[1:]
        }

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes what came of a task."""
        self._log.append(record)
        self.finished[record["fingerprint"]] = record

    def record_of(self, task: Task) -> Mapping[str, Any] | None:
        """What came of a task; ``None`` where it is not finished."""
        return self.finished.get(fingerprint(task))

    def trace_of(self, task: Task) -> ExpertTrace | None:
        """The task's trace, read and checked like one of a task file; ``None`` where none was kept.

        Raises:
            ValueError: It is not well formed: the log was changed by hand.
        """
        record = self.record_of(task)
        if record is None or record.get("trace") is None:
            return None
        try:
            return task_from_json(task_to_json(task) | {"trace": record["trace"]}).trace
        except TaskFieldError as error:
            raise ValueError(
                f"{self.path}, task {task.id!r}: {error}; remove its line to have it made again"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


def fingerprint(task: Task) -> str:
    """A hash of the task without its trace, so that a changed task is asked anew."""
    record = {name: value for name, value in task_to_json(task).items() if name != "trace"}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def _other_settings(path: Path, made_by: Any, settings: Mapping[str, Any]) -> str:
    if not isinstance(made_by, dict):
        return f"{path} is not a log of generated traces; name another file"
    changed = sorted(key for key in {*made_by, *settings} if made_by.get(key) != settings.get(key))
    return f"{path} was made with other settings ({', '.join(changed)}); use them again, or write to another file"

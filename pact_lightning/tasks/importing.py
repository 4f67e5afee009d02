"""Import of tasks from any source into the package's own task file, with a count of all that is left out or added."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pact_lightning.credit.answers import open_answers
from pact_lightning.tasks.jsonl import scan_source, write_jsonl
from pact_lightning.traces.replay import replay_calls, trace_from_calls
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.types.trace import ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import scan_json_lines, scan_json_list


def other_format(record: Any) -> tuple[str, str] | None:
    """Recognise a record of another format than the package's own by its fields.

    Args:
        record: A JSON value.

    Returns:
        The format's name for ``--format``, and the field that tells it; ``None`` for any other record.

    >>> other_format({"codes": "{}", "answer": "1"}), other_format({"id": "a", "environment": {}})
    (('ftrl', 'codes'), None)
    """
    if not isinstance(record, dict) or "environment" in record:
        return None
    if "sub_task" in record:
        return "toolhop", "sub_task"
    field = next((name for name in ("codes", "unsolved_set") if name in record), None)
    if field is None:
        return None
    return ("matchtir" if "ground_truth" in record else "ftrl"), field


def check_own_format(path: Path) -> None:
    """Refuse a file whose first record is of another format than the package's own.

    A file that cannot be read passes: whoever reads the whole of it reports the mistake.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The first record is a row of FTRL, MatchTIR or ToolHop; the error says which ``--format`` it is.
    """
    try:
        is_list = path.name.endswith((".json", ".json.gz"))
        first = next(scan_json_list(path, lone_value=True) if is_list else scan_json_lines(path), None)
    except TaskFileError:
        return
    found = None if first is None else other_format(first.value)
    if first is not None and found is not None:
        name, field = found
        problem = f"is a field of another format; add --format {name}"
        raise TaskFileError(path, first.number, problem, field)


@dataclass(slots=True)
class Tally:
    """Number of times something happened, with the first as an example."""

    count: int = 0
    first: str = ""

    def add(self, example: str) -> None:
        """Count one more."""
        self.first = self.first or example
        self.count += 1


@dataclass(slots=True)
class ImportReport:
    """Outcome of an import.

    Attributes:
        read: Records that were looked at.
        written: Tasks written.
        dropped: Records left out, by the field that was wrong.
        traces: Traces made by replay.
        no_trace: Tasks for which a replay made no trace, by reason.
    """

    read: int = 0
    written: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    traces: int = 0
    no_trace: dict[str, Tally] = field(default_factory=dict)


def import_tasks(source: TaskSource, output: Path, *, replay: bool, limit: int | None = None) -> ImportReport:
    """Write the tasks of a source as a task file, whole or not at all.

    Records that are wrong are left out and counted. A source that cannot continue after a mistake ends the import.

    Args:
        source: The source.
        output: The file to write, compressed where its name ends in ``.gz``.
        replay: Give tasks with reference calls and no trace one, by making these calls in their environment.
        limit: Write at most this many tasks.

    Raises:
        ValueError: No task is left to be written, or the source cannot continue after a mistake.
    """
    report = ImportReport()
    write_jsonl(output, _at_least_one(_tasks(source, report, replay, limit), report))
    return report


def _at_least_one(tasks: Iterable[Task], report: ImportReport) -> Iterator[Task]:
    yield from tasks
    if not report.written:
        reasons = "; ".join(tally.first for tally in report.dropped.values())
        raise ValueError(f"none of {report.read} records became a task{': ' if reasons else ''}{reasons}")


def _tasks(source: TaskSource, report: ImportReport, replay: bool, limit: int | None) -> Iterator[Task]:
    for entry in scan_source(source):
        if limit is not None and report.written >= limit:
            return
        report.read += 1
        if entry.task is None:
            first = entry.errors[0]
            where = re.sub(r"\[\d+\]", "[]", first.field) or "(the line)"
            report.dropped.setdefault(where, Tally()).add(str(first))
            continue
        report.written += 1
        yield _with_trace(entry.task, report) if replay else entry.task


def _with_trace(task: Task, report: ImportReport) -> Task:
    if task.trace is not None:
        return task
    reason = replayed = None
    if not task.reference.calls:
        reason = "no reference calls"
    else:
        replayed, reason = replay_reference(task)
    if replayed is None:
        report.no_trace.setdefault(reason or "", Tally()).add(task.id)
        return task
    report.traces += 1
    return replayed


def replay_reference(task: Task) -> tuple[Task | None, str]:
    """Make a trace of a task's reference calls by making them in its environment.

    Args:
        task: A task with reference calls.

    Returns:
        The task with the trace, or ``None`` and the reason: a call fails, or an expected answer stays open.

    Raises:
        ImportError: The environment cannot be imported.
        EnvironmentFailedError: It cannot be made or reset.
        SandboxError: The sandbox itself does not work on this machine.
    """
    calls = task.reference.calls
    results = replay_calls(task.prompt, calls).results
    if any(result.error for result in results):
        return None, "a reference call fails"
    called = [(call["name"], result.text) for call, result in zip(calls, results, strict=True)]
    if open_answers(called, task.reference.sub_answers):
        return None, "the reference calls leave an expected answer open"
    trace = trace_from_calls(calls, [result.text for result in results], source="reference calls, replayed")
    if task.reference.answer is not None:
        text = f"<answer>{task.reference.answer}</answer>"
        trace = replace(trace, final=ExpertTurn((), pattern=TurnPattern.FINAL_ANSWER_TURN, answer=text))
    return replace(task, trace=trace), ""

"""Reports on built, verified and segmented traces, as tables and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pact_lightning.teacher.build import BuildReport
from pact_lightning.teacher.importers.reading import Problem
from pact_lightning.traces.hard_turns import flag_names, hard_reasons
from pact_lightning.traces.levels import prefix_ends
from pact_lightning.traces.verdict import Verdict
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTurn


def report_record(report: BuildReport, source: str) -> dict[str, Any]:
    """Convert the report to JSON, with every problem and its place.

    Args:
        report: The report of a build.
        source: The records' source.
    """
    exact, as_json, differs = report.agreement
    return {
        "source": source,
        "records": report.records,
        "formats": dict(report.forms),
        "kept": report.kept_by.total(),
        "kept_by": dict(report.kept_by),
        "dropped": len(report.problems),
        "dropped_by": dict(Counter(problem.reason for problem in report.problems)),
        "notes": dict(report.notes),
        "segmented": dict(report.segmented),
        "quality_flags": dict(report.flags),
        "responses": {"exact": exact, "json": as_json, "differs": differs, "taken": report.taken},
        "solve_f1": mean(report.solve_f1),
        "problems": [problem_record(problem) for problem in report.problems],
    }


def problem_record(problem: Problem) -> dict[str, Any]:
    """Convert a problem to JSON."""
    place = problem.place
    where = {"id": problem.id, "file": str(place.path), place.unit: place.number, "field": problem.field}
    return {**where, "reason": problem.reason, "text": problem.text}


def turn_record(id_: str, index: int, turn: ExpertTurn) -> dict[str, Any]:
    """Convert a segmented turn to JSON: its chunks, its calls, the ends of its prefixes L0 to L4.

    Args:
        id_: The task's or record's id.
        index: The turn's index.
        turn: The turn.
    """
    said = turn.reply if turn.reply is not None else turn.answer
    return {
        "id": id_,
        "turn": index,
        "chunks": [{"text": chunk.text, "type": chunk.type.value} for chunk in turn.chunks],
        "calls": [dict(call) for call in turn.calls],
        **({"reply": said} if said else {}),
        "pattern": turn.pattern.value,
        "prefix_ends": list(prefix_ends(turn.chunks, turn.calls)),
        "hard": hard_reasons(turn.chunks, turn.reasoning, turn.calls),
    }


def verdict_record(task: Task, verdict: Verdict) -> dict[str, Any]:
    """Convert a task's verdict to JSON."""
    flags = [] if task.trace is None else flag_names(task.trace, task.reference.answer)
    exact, as_json, differs = verdict.agreement
    return {
        "id": task.id,
        "verdict": "kept" if verdict.kept else "dropped",
        "reason": verdict.reason,
        "field": "" if verdict.place is None else str(verdict.place),
        "text": verdict.text,
        "responses": {"exact": exact, "json": as_json, "differs": differs},
        "solve_f1": verdict.solve_f1,
        "quality_flags": flags,
    }


def report_table(report: BuildReport, title: str) -> Table:
    """Show the report: counts, and for every reason one example with its place."""
    table = _table(title)
    kept = report.kept_by.total()
    _row(table, "records", report.records)
    _rows(table, report.forms)
    _row(table, "kept", kept, f"{100 * kept / report.records:.0f} %" if report.records else "")
    _rows(table, report.kept_by)
    _row(table, "dropped", len(report.problems))
    by_reason = Counter(problem.reason for problem in report.problems)
    for reason, count in by_reason.most_common():
        example = next(problem for problem in report.problems if problem.reason == reason)
        _row(table, f"  {reason}", count, str(example))
    _section(table, "made to fit", report.notes)
    _section(table, "turns segmented by", report.segmented)
    _section(table, "kept traces with flag", report.flags)
    add_responses(table, report.agreement, report.solve_f1, report.taken)
    return table


def verdict_table(title: str, verdicts: Sequence[tuple[str, Verdict]], flags: Counter[str]) -> Table:
    """Show the verdicts of a verification.

    Args:
        title: The table's title.
        verdicts: Id and verdict of every task.
        flags: Number of traces with each quality flag.
    """
    table = _table(title)
    for heading, wanted in (("kept", True), ("dropped", False)):
        of_kind = [
            (id_, verdict) for id_, verdict in verdicts if verdict.kept is wanted and verdict.reason != "no trace"
        ]
        _row(table, heading, len(of_kind))
        for reason, count in Counter(verdict.reason for _, verdict in of_kind).most_common():
            id_, first = next(entry for entry in of_kind if entry[1].reason == reason)
            where = f", {first.place}" if first.place else ""
            _row(table, f"  {reason}", count, f"such as {id_}{where}{f': {first.text}' if first.text else ''}")
    without = sum(verdict.reason == "no trace" for _, verdict in verdicts)
    if without:
        _row(table, "without a trace", without)
    _section(table, "traces with flag", flags)
    return table


def add_responses(table: Table, agreement: tuple[int, int, int], solve_f1: Sequence[float], taken: int = 0) -> None:
    """Add rows on the agreement of replayed with recorded responses, and on the mean Solve-F1."""
    names = ("exact", "the same JSON", "differ", "taken from the environment")
    _section(table, "replayed responses", dict(zip(names, (*agreement, taken), strict=True)))
    average = mean(solve_f1)
    if average is not None:
        table.add_row(Text("Solve-F1 of the replay"), f"{average:.4f}", Text(f"mean of {len(solve_f1)} traces"))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; ``None`` without values."""
    return sum(values) / len(values) if values else None


def _table(title: str) -> Table:
    table = Table(title=Text(title), show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    return table


def _row(table: Table, name: str, count: int, text: str = "") -> None:
    # Text objects, since text from a file must not be read as rich's markup.
    table.add_row(Text(name), str(count), Text(text if len(text) <= 300 else f"{text[:297]}..."))


def _rows(table: Table, counts: Mapping[str, int]) -> None:
    for name, count in Counter(counts).most_common():
        if count:
            _row(table, f"  {name}", count)


def _section(table: Table, heading: str, counts: Mapping[str, int]) -> None:
    if any(counts.values()):
        table.add_row(Text(heading))
        _rows(table, counts)

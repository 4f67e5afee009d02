"""Report on a generation of traces, as JSON and as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pact_lightning.teacher.attempt import KEPT
from pact_lightning.teacher.endpoint import Usage
from pact_lightning.teacher.generate import GenerationLog, Teacher
from pact_lightning.types.task import Task

_EXAMPLES = 3


def generation_report(tasks: Sequence[Task], log: GenerationLog, teacher: Teacher) -> dict[str, Any]:
    """Count tasks and attempts by outcome, earlier runs of the same log included.

    Args:
        tasks: All tasks.
        log: Their log.
        teacher: The teacher of this run.

    Returns:
        ``tasks, finished, kept, outcomes`` (of each finished task's last attempt), ``attempts, attempt_outcomes,
        examples`` (the first sentences on each outcome, with task and attempt), ``left`` (reasons for tasks left for
        another run), ``usage`` and ``cost`` (of all finished attempts), ``this_run`` (its requests, with those of
        unfinished attempts) and, with an annotator, ``annotator``.
    """
    records = [record for task in tasks if (record := log.record_of(task)) is not None]
    usage = Usage()
    for record in records:
        for attempt in record["attempts"]:
            usage.add(Usage(**attempt["usage"]))
    outcomes = Counter(record["attempts"][-1]["outcome"] for record in records)
    config = teacher.endpoint.config
    report: dict[str, Any] = {
        "model": config.model,
        "tasks": len(tasks),
        "finished": len(records),
        "kept": outcomes[KEPT],
        "outcomes": dict(sorted(outcomes.items())),
        **_attempts(records),
        "left": dict(sorted(teacher.left.items())),
        "usage": asdict(usage),
        "cost": usage.cost(config),
        "this_run": asdict(teacher.endpoint.usage) | {"cost": teacher.endpoint.usage.cost(config)},
    }
    if teacher.annotator is not None:
        endpoint = teacher.annotator.endpoint
        report["annotator"] = {
            **asdict(teacher.annotator.stats),
            "usage": asdict(endpoint.usage),
            "cost": endpoint.usage.cost(endpoint.config),
        }
    return report


def _attempts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    examples: dict[str, list[dict[str, Any]]] = {}
    outcomes: Counter[str] = Counter()
    for record in records:
        for number, attempt in enumerate(record["attempts"]):
            outcome = attempt["outcome"]
            outcomes[outcome] += 1
            shown = examples.setdefault(outcome, [])
            if outcome != KEPT and len(shown) < _EXAMPLES:
                shown.append({"task": record["id"], "attempt": number, "detail": attempt["detail"]})
    return {
        "attempts": sum(outcomes.values()),
        "attempt_outcomes": dict(sorted(outcomes.items())),
        "examples": {outcome: shown for outcome, shown in sorted(examples.items()) if shown},
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """Show the report's figures, one a row."""
    table = Table(title=f"Traces by {report['model']}")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("tasks", str(report["tasks"]))
    for outcome, count in sorted(report["outcomes"].items(), key=lambda item: item[0] != KEPT):
        share = f"{100 * count / report['finished']:.1f} %"
        table.add_row(outcome.replace("_", " "), f"{count} ({share})")
    if report["left"]:
        table.add_row("left for another run", str(len(report["left"])))
    table.add_row("attempts", str(report["attempts"]))
    usage = report["usage"]
    table.add_row("tokens read / written", f"{usage['prompt_tokens']:,} / {usage['completion_tokens']:,}")
    if usage["uncounted"]:
        table.add_row("replies without token counts", str(usage["uncounted"]))
    table.add_row("cost", f"{report['cost']:.4f}")
    table.add_row(
        "requests of this run (retries)", f"{report['this_run']['requests']} ({report['this_run']['retries']})"
    )
    for name, value in _annotator_rows(report):
        table.add_row(f"annotator: {name}", value)
    return table


def _annotator_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "annotator" not in report:
        return []
    annotator = report["annotator"]
    names = ("annotated", "from_cache", "asked_again", "unusable", "unanswered")
    rows = [(name.replace("_", " "), str(annotator[name])) for name in names]
    return [*rows, ("cost of this run", f"{annotator['cost']:.4f}")]

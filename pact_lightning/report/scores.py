"""Scores of runs, rolled out from the prompt alone: curves with intervals, and tables of before and after."""

from collections.abc import Sequence

from pact_lightning.compare.results import Cell, Setting
from pact_lightning.compare.statistics import Interval, mean_interval
from pact_lightning.compare.tables import curve_of, score_lines, settings_of
from pact_lightning.report.rollouts import Json

_FIRST = ("answer_correct", "solve_f1", "solve_p", "solve_r", "answered")
"""Metrics that stand first, in this order."""


def metrics_of(cells: Sequence[Cell]) -> list[str]:
    """Return the metrics of all evaluations, the answers' first."""
    found = {name for cell in cells for each in cell.evaluations for name in each.scores}
    return sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def success_charts(cells: Sequence[Cell]) -> list[Json]:
    """Lay out the validations within the fits as charts: one for each setting, of the first metric.

    Args:
        cells: The runs.

    Returns:
        Charts whose points are optimiser steps, mean, and lower and upper end of the mean's 95 % interval.
    """
    charts = []
    for setting in settings_of(cells):
        metric = next(iter(metrics_of(cells)), "")
        points = {number: _points(cell, setting, metric) for number, cell in enumerate(cells)}
        series = [{"run": number, "label": metric, "points": of} for number, of in points.items() if of]
        if series:
            values = [point[1] for of in points.values() for point in of]
            charts.append(
                {
                    "key": f"success-{setting.split}-{setting.temperature:g}",
                    "title": "Success from the prompt alone",
                    "about": f"{metric}, {setting}: mean over tasks with its 95 % interval.",
                    "axis": "optimiser steps",
                    "stacked": False,
                    "percent": all(0 <= value <= 1 for value in values),
                    "series": series,
                    "further": False,
                }
            )
    return charts


def _points(cell: Cell, setting: Setting, metric: str) -> list[list[float]]:
    points: list[list[float]] = []
    for steps, scores in curve_of([cell], cell.method, setting, metric).items():
        mean, low, high, *_ = mean_interval(scores)
        points.append([steps, *(round(value, 5) for value in (mean, low, high))])
    return points


def headline(cell: Cell) -> Json | None:
    """Return the first metric of a run in its first setting, before and after; ``None`` without an evaluation."""
    alone = Cell(cell.method, cell.seed, cell.evaluations)
    tables = [table for table in score_tables([alone], metrics_of([alone])[:1]) if table["rows"]]
    if not tables:
        return None
    return {**{name: tables[0][name] for name in ("setting", "metric", "percent")}, **tables[0]["rows"][0]}


def score_tables(cells: Sequence[Cell], metrics: Sequence[str] | None = None) -> list[Json]:
    """Lay out the scores of all metrics and settings, as ``pact-lightning compare`` has them.

    Args:
        cells: The runs; those of the same name are seeds of one method. The first one's is the one that the others
            are compared with.
        metrics: The metrics; ``None`` for all.

    Returns:
        For each setting and metric a row for each method; intervals are mean, lower and upper end.
    """
    tables = []
    for setting in settings_of(cells):
        within = [cell for cell in cells if any(each.setting == setting for each in cell.evaluations)]
        for metric in metrics_of(within) if metrics is None else metrics:
            lines, percent = score_lines(within, metric, setting, within[0].method)
            rows = [
                {
                    "method": line.method,
                    "seeds": line.after.seeds,
                    "tasks": line.after.tasks,
                    "before": _shown(line.before),
                    "after": _shown(line.after),
                    "change": _shown(line.change),
                    "difference": _shown(line.difference),
                }
                for line in lines
            ]
            tables.append({"setting": str(setting), "metric": metric, "percent": percent, "rows": rows})
    return tables


def _shown(found: Interval | None) -> list[float] | None:
    return None if found is None else [round(value, 5) for value in found[:3]]

"""Tables of a comparison: scores with intervals and learning curves as Markdown, budgets, and tidy rows for a CSV."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from pact_lightning.compare.results import Cell, Evaluation, Setting
from pact_lightning.compare.statistics import Interval, Scores, mean_interval, paired_difference

COLUMNS = ("method", "regime", "seed", "split", "temperature", "metric", "value", "tokens", "steps", "commit")
"""Columns of :func:`tidy_rows`."""
RUN_COLUMNS = ("method", "regime", "seed", "tokens", "steps", "seconds", "commit", "machine", "command")
"""Columns of :func:`run_rows`; a command is as long as all else."""
CURVE_COLUMNS = ("method", "regime", "seed", "split", "temperature", "steps", "metric", "value")
"""Columns of :func:`curve_rows`."""
FEW_SEEDS = 5
"""Seeds below which a sentence says that the intervals are too narrow."""
TOLERANCE = 0.1
"""Share by which the sampled tokens of two methods may differ before it is told."""


def methods_of(cells: Sequence[Cell], against: str = "") -> list[str]:
    """Return the methods by name, the one that the others are compared with first."""
    return sorted({cell.method for cell in cells}, key=lambda name: (name != against, name))


def regimes_of(cells: Sequence[Cell]) -> list[str]:
    """Return the regimes by name."""
    return sorted({cell.regime for cell in cells})


def settings_of(cells: Sequence[Cell]) -> list[Setting]:
    """Return the settings of all evaluations: by split, then temperature."""
    return sorted({evaluation.setting for cell in cells for evaluation in cell.evaluations})


def scores_after(cells: Sequence[Cell], method: str, setting: Setting, metric: str) -> dict[int, dict[str, float]]:
    """Return a method's scores after training, by seed and task."""
    found = {cell.seed: cell.last(setting) for cell in cells if cell.method == method}
    return _of_metric(found, metric)


def scores_at(
    cells: Sequence[Cell], method: str, setting: Setting, metric: str, steps: int
) -> dict[int, dict[str, float]]:
    """Return a method's scores after optimiser steps of its own, by seed and task; 0 is before its training."""
    return _of_metric({cell.seed: cell.at(setting, steps) for cell in cells if cell.method == method}, metric)


def curve_of(
    cells: Sequence[Cell], method: str, setting: Setting, metric: str
) -> dict[int, dict[int, dict[str, float]]]:
    """Return a method's learning curve: scores by seed and task, by optimiser steps with those of earlier runs."""
    points: dict[int, dict[int, dict[str, float]]] = {}
    for cell in cells:
        for steps, each in cell.curve(setting).items() if cell.method == method else ():
            if each.scores.get(metric):
                points.setdefault(steps, {})[cell.seed] = dict(each.scores[metric])
    return dict(sorted(points.items()))


def _of_metric(found: dict[int, Evaluation | None], metric: str) -> dict[int, dict[str, float]]:
    return {seed: dict(each.scores[metric]) for seed, each in found.items() if each and each.scores.get(metric)}


def report(cells: Sequence[Cell], metric: str, against: str) -> str:
    """Write the comparison as Markdown.

    Args:
        cells: The runs, in any order.
        metric: The metric, such as ``answer_correct``.
        against: The method that the others are compared with.

    Raises:
        ValueError: No run has the metric, or there is no such method.
    """
    check(cells, metric, against)
    parts = []
    for regime in regimes_of(cells):
        within = [cell for cell in cells if cell.regime == regime]
        if regime:
            parts.append(f"## {regime}")
        for setting in settings_of(within):
            table = _score_table(within, metric, setting, against)
            if table:
                parts += [f"{metric} ({setting}), mean and 95 % interval:", table]
            curve = _curve_table(within, metric, setting, against)
            if curve:
                parts += [f"{metric} by optimiser steps ({setting}), mean:", curve]
        parts += ["Budget, mean of a method's runs:", _budget_table(within, against)]
        parts += budget_remarks(within, against) + _few_seeds(within)
    return "\n\n".join(parts) + "\n"


def check(cells: Sequence[Cell], metric: str, against: str) -> None:
    """Check that there is something to compare.

    Raises:
        ValueError: There is not.
    """
    metrics = sorted({name for cell in cells for each in cell.evaluations for name in each.scores})
    if metric not in metrics:
        known = f"they have {', '.join(metrics)}" if metrics else "the runs have no scores: none was evaluated"
        raise ValueError(f"no run has the metric {metric!r}; {known}")
    methods = methods_of(cells)
    if against not in methods:
        raise ValueError(f"there is no method {against!r} to compare with; there are {', '.join(methods)}")


class ScoreLine(NamedTuple):
    """Scores of one method: a line of a table.

    Attributes:
        method: The method.
        after: Its mean after training.
        before: Its mean before training; ``None`` where it was not evaluated then.
        change: Paired difference of the two.
        difference: Paired difference from the method that the others are compared with; ``None`` for that one.
    """

    method: str
    after: Interval
    before: Interval | None
    change: Interval | None
    difference: Interval | None


def score_lines(cells: Sequence[Cell], metric: str, setting: Setting, against: str) -> tuple[list[ScoreLine], bool]:
    """Estimate the scores of all methods in one setting.

    Args:
        cells: Runs of one regime.
        metric: The metric.
        setting: The setting; methods that were not evaluated in it are left out.
        against: The method that the others are compared with.

    Returns:
        A line for each method, and whether all scores are shares, which are shown in percent.
    """
    methods = methods_of(cells, against)
    after = {method: scores_after(cells, method, setting, metric) for method in methods}
    before = {method: scores_at(cells, method, setting, metric, 0) for method in methods}
    lines = [
        ScoreLine(
            method,
            mean_interval(after[method]),
            mean_interval(before[method]) if before[method] else None,
            paired_difference(after[method], before[method]),
            None if method == against else paired_difference(after[method], after[against]),
        )
        for method in methods
        if after[method]
    ]
    return lines, _is_share([*after.values(), *before.values()])


def _score_table(cells: Sequence[Cell], metric: str, setting: Setting, against: str) -> str:
    lines, percent = score_lines(cells, metric, setting, against)
    begun, several = any(line.before for line in lines), len(methods_of(cells)) > 1
    head = ["method", "seeds", *(["before"] if begun else []), "after", *(["change"] if begun else [])]
    rows = [head + ([f"difference from {against}"] if several else [])]
    for line in lines:
        row = [line.method, str(line.after.seeds)]
        if begun:
            row.append(_shown(line.before, percent) if line.before else "")
        row.append(_shown(line.after, percent))
        if begun:
            row.append(_change(line.change, percent))
        if several:
            row.append(_change(line.difference, percent))
        rows.append(row)
    return _markdown(rows) if len(rows) > 1 else ""


def _curve_table(cells: Sequence[Cell], metric: str, setting: Setting, against: str) -> str:
    curves = {method: curve_of(cells, method, setting, metric) for method in methods_of(cells, against)}
    steps = sorted({number for curve in curves.values() for number in curve})
    if max(map(len, curves.values())) < 3:  # before and after stand in the table of scores
        return ""
    percent = _is_share([scores for curve in curves.values() for scores in curve.values()])
    rows = [["method", *map(str, steps)]]
    for method, curve in curves.items():
        if curve:
            rows.append(
                [method, *(_value(_mean(curve[number]), percent) if number in curve else "" for number in steps)]
            )
    return _markdown(rows)


def _mean(scores: Scores) -> float:
    return fmean(value for of in scores.values() for value in of.values())


def _budget_table(cells: Sequence[Cell], against: str) -> str:
    rows = [["method", "runs", "optimiser steps", "sampled tokens", "minutes"]]
    for method in methods_of(cells, against):
        costs = [cell.cost for cell in cells if cell.method == method]
        steps, tokens = fmean(cost.steps for cost in costs), fmean(cost.tokens for cost in costs)
        minutes = fmean(cost.seconds for cost in costs) / 60
        sampled = f"{tokens:,.0f}" if tokens else "0 (no rollouts)"
        rows.append([method, str(len(costs)), f"{steps:,.0f}", sampled, f"{minutes:.1f}"])
    return _markdown(rows)


def budget_remarks(cells: Sequence[Cell], against: str) -> list[str]:
    """Tell what of a budget was spent by an earlier run, and where it is another than that of ``against``.

    Args:
        cells: Runs of one regime.
        against: The method that the others are compared with.
    """
    remarks = [
        f"{method} begins from {cell.after}'s runs, which made {cell.cost_before.steps} of its optimiser steps and "
        f"sampled {cell.cost_before.tokens:,} of its tokens."
        for method, cell in sorted({cell.method: cell for cell in cells if cell.after}.items())
    ]
    own = [cell.cost for cell in cells if cell.method == against]
    if not own:
        return remarks
    steps, tokens = {cost.steps for cost in own}, fmean(cost.tokens for cost in own)
    for method in methods_of(cells, against):
        costs = [cell.cost for cell in cells if cell.method == method]
        others = {cost.steps for cost in costs}
        if others != steps:
            remarks.append(
                f"Unequal budget: {method} made {_counts(others)} optimiser steps, {against} {_counts(steps)}."
            )
        sampled = fmean(cost.tokens for cost in costs)
        if abs(sampled - tokens) > TOLERANCE * tokens:
            share = f"{sampled / tokens:.0%} of {against}'s" if tokens else f"{against} none"
            spent = f"sampled {sampled:,.0f} tokens in training" if sampled else "has no rollouts in training"
            remarks.append(f"Unequal budget: {method} {spent}, {share}.")
    return remarks


def _few_seeds(cells: Sequence[Cell]) -> list[str]:
    few = {method: len({cell.seed for cell in cells if cell.method == method}) for method in methods_of(cells)}
    few = {method: number for method, number in few.items() if number < FEW_SEEDS}
    if not few:
        return []
    names = ", ".join(f"{method} ({number})" for method, number in few.items())
    return [f"Fewer than {FEW_SEEDS} seeds, so the intervals are too narrow to tell methods apart: {names}."]


def _counts(numbers: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))


def tidy_rows(cells: Sequence[Cell]) -> Iterator[dict[str, str]]:
    """Yield a row for each metric of each run's evaluations after training, sorted by what they are of."""
    for cell in sorted(cells, key=_place):
        for setting in settings_of([cell]):
            last = cell.last(setting)
            for metric, scores in sorted(last.scores.items() if last else ()):
                yield {
                    **_common(cell, setting),
                    "metric": metric,
                    "value": repr(fmean(scores.values())),
                    "tokens": str(cell.cost.tokens),
                    "steps": str(cell.cost.steps),
                    "commit": cell.facts.get("commit", ""),
                }


def run_rows(cells: Sequence[Cell]) -> Iterator[dict[str, str]]:
    """Yield a row for each run: what it took, and how and where it was made."""
    for cell in sorted(cells, key=_place):
        cost = {
            "tokens": str(cell.cost.tokens),
            "steps": str(cell.cost.steps),
            "seconds": f"{cell.cost.seconds:.1f}",
        }
        yield {**_run(cell), **cost, **cell.facts}


def curve_rows(cells: Sequence[Cell]) -> Iterator[dict[str, str]]:
    """Yield a row for each metric of each point of a learning curve."""
    for cell in sorted(cells, key=_place):
        for setting in settings_of([cell]):
            for steps, found in cell.curve(setting).items():
                for metric, scores in sorted(found.scores.items()):
                    value = {"steps": str(steps), "metric": metric, "value": repr(fmean(scores.values()))}
                    yield _common(cell, setting) | value


def _common(cell: Cell, setting: Setting) -> dict[str, str]:
    return _run(cell) | {"split": setting.split, "temperature": f"{setting.temperature:g}"}


def _run(cell: Cell) -> dict[str, str]:
    return {"method": cell.method, "regime": cell.regime, "seed": str(cell.seed)}


def _place(cell: Cell) -> tuple[str, str, int]:
    return cell.regime, cell.method, cell.seed


def _is_share(tables: Sequence[Scores]) -> bool:
    """Tell whether all scores are within ``[0, 1]``; these are shown in percent."""
    return all(0 <= value <= 1 for scores in tables for of in scores.values() for value in of.values())


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}%" if percent else f"{value:.2f}"


def _shown(found: Interval, percent: bool) -> str:
    return f"{_value(found.mean, percent)} [{_value(found.low, percent)}, {_value(found.high, percent)}]"


def _change(found: Interval | None, percent: bool) -> str:
    if found is None:
        return ""
    mean, low, high = (f"{100 * value:+.1f}" if percent else f"{value:+.2f}" for value in found[:3])
    return f"{mean}{' points' if percent else ''} [{low}, {high}]"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])

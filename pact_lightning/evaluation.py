"""What rollouts are worth and what they do: all metrics together, and the tables that show them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.table import Table
from torch import nn

from pact_lightning.metrics.answer import AnswerCorrectness
from pact_lightning.metrics.rollout_metric import RolloutMetric
from pact_lightning.metrics.solve import SolveRate
from pact_lightning.metrics.tool_use import ToolUse
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Task

Scores = dict[str, float]


_Metric = AnswerCorrectness | SolveRate | ToolUse | RolloutMetric


class EvaluationMetrics(nn.Module):
    """Solve rates, answer correctness and tool use of a set of rollouts, and further metrics.

    Args:
        further: Metrics beside those three.
    """

    def __init__(self, further: Sequence[RolloutMetric] = ()) -> None:
        super().__init__()
        self.solve = SolveRate()
        self.answer = AnswerCorrectness()
        self.tool_use = ToolUse()
        self.further = nn.ModuleList(further)

    @property
    def shares(self) -> frozenset[str]:
        """Names of the values in ``[0, 1]``."""
        return frozenset(name for metric in self._all() for name in metric.shares)

    def update(self, task: Task, trajectory: Trajectory) -> None:
        """Adds one rollout."""
        self.solve.update(trajectory, task.reference)
        self.answer.update(trajectory, task.reference)
        self.tool_use.update(trajectory, task.prompt.tool_names)
        for metric in self._further():
            metric.update(trajectory, task)

    def compute(self) -> Scores:
        """All figures by name; those that no task allows (no reference answer, say) are absent.

        Raises:
            ValueError: Two metrics give the same name.
        """
        scores: Scores = {}
        for metric in self._all():
            values = _values(metric)
            twice = scores.keys() & values.keys()
            if twice:
                raise ValueError(f"two metrics give {', '.join(sorted(twice))}; leave one of them out of model.metrics")
            scores |= values
        return {name: value for name, value in scores.items() if not math.isnan(value)}

    def reset(self) -> None:
        """Starts afresh."""
        for metric in self._all():
            metric.reset()

    def _further(self) -> Iterator[RolloutMetric]:
        for metric in self.further:
            assert isinstance(metric, RolloutMetric)
            yield metric

    def _all(self) -> Iterator[_Metric]:
        yield from (self.answer, self.solve)
        yield from self._further()
        yield self.tool_use


def _values(metric: _Metric) -> Scores:
    """What a metric gives.

    Raises:
        ValueError: It gives something else than numbers by name.
    """
    given = metric.compute()
    try:
        return {str(name): float(value) for name, value in given.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{type(metric).__name__}.compute() must give numbers by name, not {given!r:.80}") from error


def scores_table(title: str, scores: Mapping[str, float], shares: Collection[str]) -> Table:
    """The scores of one evaluation.

    Args:
        title: What was evaluated.
        scores: Values by name; a stop reason that never occurred is left out.
        shares: Names of the values to be shown in percent.
    """
    table = Table(title=title)
    table.add_column("metric")
    table.add_column("score", justify="right")
    for name, value in scores.items():
        if value or not name.startswith("stop_"):
            table.add_row(name, _shown(value, name in shares))
    return table


def comparison_table(title: str, history: Sequence[tuple[int, Mapping[str, float]]], shares: Collection[str]) -> Table:
    """The first and the last validation of a run side by side.

    Args:
        title: How the rollouts were made.
        history: (finished phases, scores) of each validation, oldest first; at least one.
        shares: Names of the values to be shown in percent.
    """
    (first_phase, first), (last_phase, last) = history[0], history[-1]
    table = Table(title=title)
    table.add_column("")
    table.add_column("before" if first_phase == 0 else f"after {first_phase}", justify="right")
    table.add_column(f"after {last_phase}", justify="right")
    table.add_column("change", justify="right")
    for name in last:
        if name not in first or (name.startswith("stop_") and not first[name] and not last[name]):
            continue
        share = name in shares
        change = last[name] - first[name]
        difference = f"{100 * change:+.1f}" if share else f"{change:+.2f}"
        table.add_row(name, _shown(first[name], share), _shown(last[name], share), difference)
    return table


def _shown(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.2f}"

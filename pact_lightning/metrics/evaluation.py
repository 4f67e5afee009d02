"""What a metric over rollouts is that a recipe can add to the usual ones.

What rollouts are worth and what they do: all metrics together, and the tables that show them.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torchmetrics import Metric

from pact_lightning.metrics.solve import AnswerCorrectness, SolveRate
from pact_lightning.metrics.tool_use import ToolUse
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory


class RolloutMetric(Metric):
    """A metric over rollouts, for a benchmark's own scores; recipes name it under ``model.metrics``.

    Attributes:
        shares: Names, among those that ``compute`` gives, of values in ``[0, 1]``; tables show them in percent.
    """

    full_state_update = False
    shares: tuple[str, ...] = ()

    @abstractmethod
    def update(self, trajectory: Trajectory, task: Task) -> None:
        """Adds one rollout, or passes over one of a task that the metric does not know."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """All values by name; NaN where nothing was counted."""


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

"""Metrics of an evaluation: solve rates, answers and tool use, and the base class of further metrics."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torchmetrics import Metric

from pact_lightning.metrics.solve import AnswerCorrectness, SolveRate
from pact_lightning.metrics.tool_use import ToolUse
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory

Scores = dict[str, float]


class RolloutMetric(Metric):
    """Base of metrics over rollouts, such as a benchmark's own scores; recipes list them under ``model.metrics``.

    Attributes:
        shares: Names of the values in ``[0, 1]`` that ``compute`` returns; tables show them in percent.
    """

    full_state_update = False
    shares: tuple[str, ...] = ()

    @abstractmethod
    def update(self, trajectory: Trajectory, task: Task) -> None:
        """Add one rollout; skip a task that the metric does not know."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return all values by name; NaN where nothing was counted."""


_Metric = AnswerCorrectness | SolveRate | ToolUse | RolloutMetric


class EvaluationMetrics(nn.Module):
    """Solve rates, answer correctness, tool use and further metrics of a set of rollouts.

    Args:
        further: Metrics in addition to these three.
    """

    def __init__(self, further: Sequence[RolloutMetric] = ()) -> None:
        super().__init__()
        self.solve = SolveRate()
        self.answer = AnswerCorrectness()
        self.tool_use = ToolUse()
        self.further = nn.ModuleList(further)
        self._single: list[_Metric] = []  # copies of the metrics, for one rollout at a time; no submodules

    @property
    def shares(self) -> frozenset[str]:
        """Names of the values in ``[0, 1]``."""
        return frozenset(name for metric in self._all() for name in metric.shares)

    @property
    def names(self) -> frozenset[str]:
        """Names of all values, those among them that a set of tasks may lack."""
        names: set[str] = set()
        for metric in self._all():
            empty = _alone(metric)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                names.update(_values(empty))
        return frozenset(names)

    def update(self, task: Task, trajectory: Trajectory) -> None:
        """Add one rollout."""
        for metric in self._all():
            _update(metric, task, trajectory)

    def of_one(self, task: Task, trajectory: Trajectory) -> Scores:
        """Return one rollout's own values, without the shares of its stop reason; nothing is added to the totals."""
        if not self._single:
            self._single = [_alone(metric) for metric in self._all()]
        scores: Scores = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")  # it does not know the task
            for metric in self._single:
                metric.reset()
                _update(metric, task, trajectory)
                scores |= _values(metric)
        return {name: value for name, value in scores.items() if not (math.isnan(value) or name.startswith("stop_"))}

    def compute(self) -> Scores:
        """Return all values by name; a value that no task allows, such as one without a reference answer, is absent.

        Raises:
            ValueError: Two metrics give the same name.
        """
        scores: Scores = {}
        for metric in self._all():
            values = _values(metric)
            twice = scores.keys() & values.keys()
            if twice:
                raise ValueError(f"two metrics give {', '.join(sorted(twice))}; remove one of them from model.metrics")
            scores |= values
        return {name: value for name, value in scores.items() if not math.isnan(value)}

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in self._all():
            metric.reset()

    def _all(self) -> tuple[_Metric, ...]:
        return (self.answer, self.solve, *self._further, self.tool_use)

    @property
    def _further(self) -> tuple[RolloutMetric, ...]:
        return tuple(cast(RolloutMetric, metric) for metric in self.further)


def _alone(metric: _Metric) -> _Metric:
    """Return a copy that one process may ask alone."""
    copy = cast(_Metric, metric.clone())
    copy.distributed_available_fn = _no_others  # `sync_on_compute` is read once, when a metric is made
    return copy


def _no_others() -> bool:
    return False


def _update(metric: _Metric, task: Task, trajectory: Trajectory) -> None:
    if isinstance(metric, ToolUse):
        metric.update(trajectory, task.prompt.tool_names)
    elif isinstance(metric, SolveRate | AnswerCorrectness):
        metric.update(trajectory, task.reference)
    else:
        metric.update(trajectory, task)


def _values(metric: _Metric) -> Scores:
    """Return a metric's values as floats.

    Raises:
        ValueError: ``compute`` returns something other than numbers by name.
    """
    given = metric.compute()
    try:
        return {str(name): float(value) for name, value in given.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{type(metric).__name__}.compute() must return a dictionary of numbers, not {given!r:.80}"
        ) from error

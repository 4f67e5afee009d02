"""What a metric over rollouts is that a recipe can add to the usual ones."""

from abc import abstractmethod

from torch import Tensor
from torchmetrics import Metric

from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Task


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

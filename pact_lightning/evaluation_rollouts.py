"""The rollouts of validation, test and prediction: how tasks are rolled out there, and what comes of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.seeds import derive_seed
from pact_lightning.tasks.schema import Task

if TYPE_CHECKING:
    from pact_lightning.task_datamodule import TaskDataModule


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A task and the rollout that the policy made of it."""

    task: Task
    trajectory: Trajectory


@dataclass(frozen=True)
class EvaluationConfig:
    """How the tasks of validation, test and prediction are rolled out: from the prompt alone, as always.

    Attributes:
        temperature: Sampling temperature; 0 is greedy.
        samples: Rollouts of each task; scores are means over all of them.
    """

    temperature: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: A value makes no sense.
        """
        if self.temperature < 0 or self.samples < 1:
            raise ValueError("data.evaluation needs a temperature of at least 0 and at least 1 sample")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"data.evaluation asks for {self.samples} samples of greedy rollouts, which would all be the same; "
                "set its temperature too"
            )

    def __str__(self) -> str:
        """For the titles of tables."""
        if not self.temperature:
            return "greedy, prompt only"
        return f"temperature {self.temperature:g}, {self.samples} each, prompt only"

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(self.temperature) if self.temperature else SamplingConfig(greedy=True)


class EvaluationRollouts:
    """All rollouts of a set of tasks, as one batch: nothing waits for the slowest of a smaller one.

    Args:
        data: Makes the rollouts.
        name: Which tasks: ``validation``, ``test`` or ``predict``.
    """

    def __init__(self, data: "TaskDataModule", name: str) -> None:
        self.data = data
        self.name = name

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Evaluated]]:
        tasks = self.data.share(self.data.tasks[self.name])
        how = self.data.evaluation
        requests = [RolloutRequest(task.prompt, how.samples, derive_seed(self.data.seed, self.name)) for task in tasks]
        results, _ = self.data.rollout(requests, how.sampling, self._title())
        yield [Evaluated(task, rollout) for task, rollouts in zip(tasks, results, strict=True) for rollout in rollouts]

    def _title(self) -> str:
        """Within a fit, says after how many phases."""
        assert self.data.trainer is not None
        in_fit = self.data.trainer.state.fn == "fit"
        return f"{self.name}-{self.data.module.finished_phases:04d}" if in_fit else self.name

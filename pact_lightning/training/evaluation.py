"""The rollouts of validation, test and prediction: how tasks are rolled out there, and what comes of it.

What an evaluation leaves behind: its scores, shown and in a file, and its rollouts as records.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pact_lightning.metrics.evaluation import Scores
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.files import write_json, write_json_lines
from pact_lightning.utils.seeds import derive_seed

if TYPE_CHECKING:
    from pact_lightning.training.task_datamodule import TaskDataModule


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


def report_scores(folder: Path, stage: str, scores: Scores, shares: Collection[str], data: "TaskDataModule") -> None:
    """Shows an evaluation's scores and leaves them in ``results-{stage}.json``, with how many tasks they are of.

    Args:
        folder: The run's folder.
        stage: ``validation`` or ``test``.
        scores: Values by name.
        shares: Names of the values to be shown in percent.
        data: Where the tasks came from.
    """
    results = {
        "stage": stage,
        "tasks": len(data.tasks[stage]),
        "left_out": data.left_out[stage],
        "rollouts": str(data.evaluation),
        "scores": scores,
    }
    title = f"{stage}: {results['tasks']} tasks, {data.evaluation}"
    if results["left_out"]:
        title += f" ({results['left_out']} left out: prompt over {data.max_prompt_tokens} tokens)"
    Console().print(scores_table(title, scores, shares))
    write_json(folder / f"results-{stage}.json", results)


def write_rollouts(folder: Path, name: str, batch: "Sequence[Evaluated]") -> list[dict[str, Any]]:
    """Writes rollouts as ``trajectories/{name}.jsonl``.

    Args:
        folder: The run's folder.
        name: The file's name, without its ending.
        batch: The rollouts with their tasks.

    Returns:
        Them as records in OpenAI message format.
    """
    records = [
        trajectory_record(evaluated.task.prompt, evaluated.trajectory, kind=evaluated.task.kind) for evaluated in batch
    ]
    write_json_lines(folder / "trajectories" / f"{name}.jsonl", records)
    return records

"""Evaluation: rollouts of validation, test and prediction tasks, their scores and what is left of them in files."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pact_lightning.metrics.evaluation import EvaluationMetrics, RolloutMetric, Scores
from pact_lightning.rollout.ahead import RolledOut
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.files import write_json, write_json_lines
from pact_lightning.utils.processes import rank_suffix, run_folder
from pact_lightning.utils.text import counted


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the rollouts of validation, test and prediction tasks, which see the prompt alone as always.

    Attributes:
        temperature: Sampling temperature; 0 is greedy.
        samples: Rollouts of each task; scores are means over all of them.
    """

    temperature: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        """Check the values.

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
        """Describe it for the titles of tables."""
        if not self.temperature:
            return "greedy, prompt only"
        return f"temperature {self.temperature:g}, {self.samples} each, prompt only"

    @property
    def sampling(self) -> SamplingConfig:
        """The sampler's settings."""
        return SamplingConfig(self.temperature) if self.temperature else SamplingConfig(greedy=True)


@dataclass(frozen=True, slots=True)
class EvaluationSource:
    """The tasks of an evaluation.

    Attributes:
        name: ``validation``, ``test`` or ``predict``.
        how: How the tasks are rolled out.
        tasks: Number of tasks, over all processes.
        left_out: Tasks left out because their prompt is too long.
        max_prompt_tokens: Tokens of the longest prompt that is not.
    """

    name: str
    how: EvaluationConfig
    tasks: int
    left_out: int
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """All rollouts of an evaluation that this process makes.

    Attributes:
        source: Where the tasks come from.
        rollouts: Each rollout with its task.
    """

    source: EvaluationSource
    rollouts: Sequence[tuple[Task, Trajectory]]

    def __len__(self) -> int:
        return len(self.rollouts)


class EvaluationRollouts:
    """A loader of one batch: all tasks are rolled out together, and nothing waits for the slowest of a smaller batch.

    Args:
        how: How the tasks are rolled out.
        tasks: Gives the source, and this process's tasks as they are when the evaluation begins.
        seed: Seed of the draws.
        roll_out: Rolls requests out.
    """

    def __init__(
        self,
        how: EvaluationConfig,
        tasks: Callable[[], tuple[EvaluationSource, Sequence[Task]]],
        seed: int,
        roll_out: Callable[[Sequence[RolloutRequest], SamplingConfig], RolledOut],
    ) -> None:
        self.how = how
        self._tasks = tasks
        self._seed = seed
        self._roll_out = roll_out

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[EvaluationBatch]:
        source, tasks = self._tasks()
        requests = [RolloutRequest(task.prompt, self.how.samples, self._seed) for task in tasks]
        results, _ = self._roll_out(requests, self.how.sampling)
        rollouts = [(task, row) for task, rows in zip(tasks, results, strict=True) for row in rows]
        yield EvaluationBatch(source, rollouts)


class EvaluatedModule(pl.LightningModule):
    """A module whose rollouts are scored in validation and test, and written in prediction.

    Args:
        metrics: Metrics beside the usual ones, such as a benchmark's own.

    Attributes:
        evaluation: The metrics.
        history: (finished phases, scores) of every validation of the fit, oldest first; a fraction within a phase.
    """

    def __init__(self, metrics: Sequence[RolloutMetric]) -> None:
        super().__init__()
        self.evaluation = EvaluationMetrics(metrics)
        self.history: list[tuple[float, Scores]] = []
        self._source: EvaluationSource | None = None  # of the last batch

    @property
    def evaluated(self) -> dict[str, Any]:
        """The subject of an evaluation: ``model`` and ``checkpoint``; within a fit its finished optimiser ``step``s."""
        if self.trainer.state.fn == "fit":
            return {"step": self.trainer.global_step}
        checkpoint = self.trainer.ckpt_path
        return {"model": self.model_name, "checkpoint": None if checkpoint is None else str(checkpoint)}

    @property
    def model_name(self) -> str:
        """The name of the policy's model, for files of results."""
        return type(self).__name__

    @property
    def metric_names(self) -> frozenset[str]:
        """Names of what a fit logs, for the callbacks that monitor one; those of training in subclasses."""
        sources = getattr(getattr(self.trainer, "datamodule", None), "sources", {})
        validates = self.trainer.limit_val_batches != 0 and sources.get("validation", True) is not None
        return frozenset(f"val/{name}" for name in self.evaluation.names if validates)

    @property
    def finished_phases(self) -> float:
        """Phases finished when a validation begins: the counters still stand at the one that has just been trained.

        A validation within a phase, by ``val_check_interval``, counts the share of its steps.
        """
        if self.trainer.sanity_checking:
            return 0.0
        return self.trainer.current_epoch + self._steps_done / int(self.trainer.num_training_batches)

    @property
    def _steps_done(self) -> int:
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def evaluation_title(self, name: str) -> str:
        """Name an evaluation and its files; within a fit by the number of finished phases too."""
        if self.trainer.state.fn != "fit":
            return name
        phases, within = divmod(self.finished_phases, 1)
        return f"{name}-{phases:04.0f}" + (f"-step-{self._steps_done}" if within else "")

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Score rollouts."""
        del batch_idx
        self._add(batch)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Score rollouts."""
        del batch_idx
        self._add(batch)

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Return rollouts as records in OpenAI message format; also written to ``trajectories/predict.jsonl``."""
        del batch_idx
        return self._write(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and keep them for the table at the end of the fit."""
        scores = self._finish("val")
        if self.trainer.sanity_checking:
            for logger in self.trainer.loggers:  # Lightning logs nothing in its sanity check, which is our start
                logger.log_metrics({f"val/{name}": value for name, value in scores.items()}, step=0)
        if self.trainer.state.fn == "fit":
            self.history.append((self.finished_phases, scores))
        else:
            self._report(scores)

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._report(self._finish("test"))

    def on_fit_end(self) -> None:
        """Print the first and the last validation side by side, and where the run's files are."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # all processes have to ask together
        if not self.trainer.is_global_zero:
            return
        rank_zero_info(f"metrics and trajectories of this run are in {folder}")
        if len(self.history) > 1:
            loader = self.trainer.val_dataloaders
            title = f"Validation: {loader.how}" if isinstance(loader, EvaluationRollouts) else "Validation"
            Console().print(comparison_table(title, self.history, self.evaluation.shares))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scores so far, so that a resumed run still knows its start."""
        checkpoint["validation_history"] = [[phase, dict(scores)] for phase, scores in self.history]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the scores of the run that is resumed."""
        self.history = [(float(phase), dict(scores)) for phase, scores in checkpoint.get("validation_history", [])]
        if self.trainer.state.fn == "fit":
            # The start is known already; the check before training would take the resumed policy for it.
            self.trainer.num_sanity_val_steps = 0

    def _add(self, batch: EvaluationBatch) -> None:
        self._source = batch.source
        for task, trajectory in batch.rollouts:
            self.evaluation.update(task, trajectory)
        self._write(batch)

    def _write(self, batch: EvaluationBatch) -> list[dict[str, Any]]:
        """Write rollouts to ``trajectories/``; return them as records in OpenAI message format, with scores."""
        name = f"{self.evaluation_title(batch.source.name)}{rank_suffix(self.trainer)}"
        of = {"temperature": batch.source.how.temperature, **self.evaluated}
        records = [
            trajectory_record(task.prompt, trajectory, kind=task.kind, scores=self.evaluation.of_one(task, trajectory))
            | of
            for task, trajectory in batch.rollouts
        ]
        write_json_lines(run_folder(self.trainer) / "trajectories" / f"{name}.jsonl", records)
        return records

    def _finish(self, prefix: str) -> Scores:
        scores = self.evaluation.compute()
        self.evaluation.reset()
        if not self.trainer.sanity_checking:
            self.log_dict({f"{prefix}/{name}": value for name, value in scores.items()})
        return scores

    def _report(self, scores: Scores) -> None:
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # all processes have to ask together
        if self.trainer.is_global_zero and self._source is not None:
            report_scores(Path(folder), self._source, scores, self.evaluation.shares, self.evaluated)
            rank_zero_info(f"scores and trajectories of this {self._source.name} are in {folder}")


def report_scores(
    folder: Path, source: EvaluationSource, scores: Scores, shares: Collection[str], of: Mapping[str, Any]
) -> None:
    """Print an evaluation's scores and write them to ``results-{name}.json``, with the number of tasks they are of.

    Args:
        folder: The run's folder.
        source: Where the tasks come from.
        scores: Values by name.
        shares: Names of the values to be shown in percent.
        of: What they are the scores of: ``model`` and ``checkpoint``.
    """
    results = {
        "stage": source.name,
        **of,
        "tasks": source.tasks,
        "left_out": source.left_out,
        "rollouts": str(source.how),
        "scores": scores,
    }
    title = f"{of['checkpoint'] or of['model']}\n{source.name}: {counted(source.tasks, 'task')}, {source.how}"
    if source.left_out:
        title += f" ({source.left_out} left out: prompt over {source.max_prompt_tokens} tokens)"
    # Above the table, which is narrower than a path: a title would be broken anywhere.
    Console().print(Text(title), soft_wrap=True)
    Console().print(scores_table(scores, shares))
    write_json(folder / f"results-{source.name}.json", results)


def scores_table(scores: Mapping[str, float], shares: Collection[str]) -> Table:
    """Make a table of one evaluation's scores.

    Args:
        scores: Values by name; a stop reason that never occurred is left out.
        shares: Names of the values to be shown in percent.
    """
    table = Table()
    table.add_column("metric")
    table.add_column("score", justify="right")
    for name, value in scores.items():
        if value or not name.startswith("stop_"):
            table.add_row(name, _shown(value, name in shares))
    return table


def comparison_table(
    title: str, history: Sequence[tuple[float, Mapping[str, float]]], shares: Collection[str]
) -> Table:
    """Make a table of the first and the last validation of a run, side by side.

    Args:
        title: Title of the table.
        history: (finished phases, scores) of each validation, oldest first; at least one.
        shares: Names of the values to be shown in percent.
    """
    (first_phase, first), (last_phase, last) = history[0], history[-1]
    table = Table(title=title)
    table.add_column("")
    table.add_column("before" if first_phase == 0 else f"after {first_phase:g}", justify="right")
    table.add_column(f"after {last_phase:g}", justify="right")
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

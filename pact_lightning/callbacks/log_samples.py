"""Sample rollouts in the loggers: as text in TensorBoard, as a table in Weights & Biases, as traces in Trackio."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from pact_lightning.callbacks.trackio_logger import TrackioLogger
from pact_lightning.credit.group import Group
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.types.trajectory import RolloutTurn, Trajectory
from pact_lightning.utils.text import visible

COLUMNS = ["phase", "task", "sample", "reward", "stop reason", "rollout"]
_LONGEST = 4000
"""Characters of a rollout's text."""


class LogSamples(pl.Callback):
    """Logs some rollouts of a phase, with their rewards, before the phase's first optimiser step.

    TensorBoard gets a text for each (`samples/0`, ...), a logger with a method ``log_table``, such as Lightning's
    WandbLogger, gets a table `samples`, and :class:`~pact_lightning.TrackioLogger` gets them as conversations. Other
    loggers get nothing.

    Args:
        rollouts: Rollouts of a phase, one of each prompt first.
        every_n_phases: Phases from one time to the next.
    """

    def __init__(self, rollouts: int = 4, every_n_phases: int = 1) -> None:
        if rollouts < 1 or every_n_phases < 1:
            raise ValueError(
                f"LogSamples needs at least 1 rollout ({rollouts}) and at least 1 phase from one time to the next "
                f"({every_n_phases})"
            )
        self.rollouts = rollouts
        self.every_n_phases = every_n_phases

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log rollouts of the first batch of a phase."""
        del pl_module
        if batch_idx or trainer.current_epoch % self.every_n_phases or not trainer.is_global_zero:
            return
        if not (isinstance(batch, list) and batch and isinstance(batch[0], Group)):
            return  # traces, of supervised fine-tuning
        chosen = _chosen(batch, self.rollouts)
        rows = [_row(group, k) for group, k in chosen]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for number, row in enumerate(rows):
                    logger.experiment.add_text(f"samples/{number}", _markdown(row), trainer.global_step)
            elif isinstance(logger, TrackioLogger):
                logger.log_traces("samples", [_record(group, k) for group, k in chosen], trainer.global_step)
            elif callable(log_table := getattr(logger, "log_table", None)):
                log_table(key="samples", columns=COLUMNS, data=rows, step=trainer.global_step)


def _chosen(groups: Sequence[Group], count: int) -> list[tuple[Group, int]]:
    """Return the first rollouts of some groups, one of each group first."""
    deepest = max((len(group.trajectories) for group in groups), default=0)
    chosen = [(group, k) for k in range(deepest) for group in groups if k < len(group.trajectories)]
    return chosen[:count]


def _row(group: Group, k: int) -> list[Any]:
    """Return what a table shows of a rollout, in the order of :data:`COLUMNS`."""
    trajectory, reward = group.trajectories[k], round(sum(group.turn_rewards[k]), 4)
    facts = [group.phase, group.task.id, trajectory.sample, reward, str(trajectory.stop_reason)]
    return [*facts, rollout_text(trajectory)]


def _record(group: Group, k: int) -> dict[str, Any]:
    reward = round(sum(group.turn_rewards[k]), 4)
    return trajectory_record(group.task.prompt, group.trajectories[k], phase=group.phase, reward=reward)


def rollout_text(trajectory: Trajectory) -> str:
    """Return a rollout as plain text, its end left out where it is very long."""
    text = visible("\n".join(line for turn in trajectory.turns for line in _lines(turn)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... (cut after {_LONGEST} characters)"


def _lines(turn: RolloutTurn) -> list[str]:
    lines = [turn.text.strip(), *(f"-> {response}" for response in turn.responses)]
    return lines if turn.user is None else [*lines, f"user: {turn.user.content}"]


def _markdown(row: Sequence[Any]) -> str:
    """Lay a row out for TensorBoard, which reads Markdown: indented, so that nothing in the text is markup."""
    *facts, text = row
    title = ", ".join(f"{name} {value}" for name, value in zip(COLUMNS, facts, strict=False))
    return "\n".join(f"    {line}" for line in [title, "", *text.splitlines()])

"""A phase's report: warnings about tools and environments, trajectories on disk, figures in the log."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from pact_lightning.credit.group import Group
from pact_lightning.credit.success import succeeded
from pact_lightning.environments.tool_calls import raised_responses
from pact_lightning.metrics.evaluation import EvaluationMetrics
from pact_lightning.metrics.rollout_figures import FIGURES
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.update.performance import PhasePerformance
from pact_lightning.update.step_metrics import step_metric_names
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.processes import rank_suffix, run_folder, sum_over_processes


class PhaseReport:
    """The report of each phase of a run; some warnings come once.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._told_unanswered = False
        self._told_raised = False

    def warn(self, groups: Sequence[Group], stats: RolloutStats) -> None:
        """Warn of environments that could not be started, and once each of unanswered calls and of exceptions.

        Args:
            groups: This process's groups of the phase.
            stats: What their rollouts took.
        """
        failed = [trajectory for group in groups for trajectory in group.failed]
        kept = [trajectory for group in groups for trajectory in group.trajectories]
        raised = [(trajectory.task_id, text) for trajectory in kept for text in raised_responses(trajectory)]
        counts = {"failed": len(failed), "kept": len(kept), "raised": len(raised)}
        found = sum_over_processes(
            self._trainer, counts | {"calls": stats.tool_calls, "unanswered": stats.unanswered_calls}
        )
        phase = groups[0].phase
        if found["raised"] and found["raised"] == found["calls"] and not self._told_raised:
            self._told_raised = True
            first = f"the first one, of task {raised[0][0]}: {raised[0][1]}" if raised else "all in other processes"
            rank_zero_warn(
                f"all {found['calls']:.0f} tool calls of phase {phase} raised an exception, so the rollouts teach "
                f"nothing about the tools; {first}. This warning is shown once"
            )
        if found["failed"]:
            first = "see the trajectories of the other processes"
            if failed:
                first = f"the first one, of task {failed[0].task_id}: {' '.join(failed[0].turns[-1].responses)}"
            rank_zero_warn(
                f"{found['failed']:.0f} of {found['failed'] + found['kept']:.0f} rollouts of this phase were "
                f"left out because their environment failed to start; {first}"
            )
        if found["unanswered"] and not self._told_unanswered:
            self._told_unanswered = True
            tasks = [trajectory.task_id for trajectory in kept if trajectory.unanswered_calls]
            where = f"such as in task {tasks[0]}" if tasks else "all in other processes"
            rank_zero_warn(
                f"{found['unanswered']:.0f} of {found['calls']:.0f} tool calls got no answer in phase "
                f"{phase}, {where}; look at the "
                "trajectories. This warning is shown once; later calls are counted in rollout/unanswered_calls"
            )

    def write(self, groups: Sequence[Group]) -> None:
        """Write the trajectories of a phase to ``trajectories/``.

        With their rewards and advantages, and whether they solved their tasks. Those of prompts that others have
        replaced say so, and those that were sampled with a trace in their prompt.

        Args:
            groups: This process's groups of the phase.
        """
        records = [
            trajectory_record(
                group.task.prompt,
                trajectory,
                rewards=rewards,
                advantages=advantages,
                **_facts(group),
                **_solved(group.task, trajectory),
                **({"off_spec": True} if sample in group.off_spec else {}),
            )
            for group in groups
            for sample, (trajectory, rewards, advantages) in enumerate(
                zip(group.trajectories, group.turn_rewards, group.advantages, strict=True)
            )
        ]
        records += [
            trajectory_record(group.task.prompt, trajectory, **_facts(group))
            for group in groups
            for trajectory in group.failed
        ]
        name = f"{phase_title(groups[0].phase)}{rank_suffix(self._trainer)}.jsonl"
        write_json_lines(run_folder(self._trainer) / "trajectories" / name, records)


def _facts(group: Group) -> dict[str, Any]:
    facts: dict[str, Any] = {"phase": group.phase, "kind": group.task.kind}
    return facts | ({"replaced": True} if group.replaced else {})


def _solved(task: Task, trajectory: Trajectory) -> dict[str, bool]:
    """Return whether a rollout solved its task, where anything says so."""
    if task.reference.answer is None and trajectory.environment_reward is None:
        return {}
    return {"solved": succeeded(trajectory, task)}


def training_metric_names() -> frozenset[str]:
    """Return the names of what a fit of ``PACTModule`` logs, but for validations, callbacks and a mismatch."""
    rollout = {f"rollout/{name}" for name in (*EvaluationMetrics().names, *FIGURES, "staleness")}
    further = {"train/learning_rate", "train/skipped_steps"}
    return step_metric_names().union(PhasePerformance.names(), rollout, further)


def warn_where_nothing_is_learned(figures: Mapping[str, float]) -> None:
    """Warn where no group of a phase tells one rollout from another.

    Args:
        figures: Those of :func:`~pact_lightning.metrics.rollout_figures.rollout_figures`, over all processes.
    """
    if figures["zero_variance"] == 1.0:
        rank_zero_warn(
            "no prompt of this phase gave a learning signal: all rollouts of each prompt scored the same. Check the "
            "rewards in the trajectories; the tasks may be too easy or too hard"
        )
    if figures["single_rollout"] == 1.0:
        rank_zero_warn(
            "no prompt of this phase gave a learning signal: each has a single rollout and nothing to compare it with. "
            "Set data.rollouts_per_prompt to at least 2, or check which environments failed"
        )


def phase_title(phase: int) -> str:
    """Return the name of a phase's files."""
    return f"phase-{phase:04d}"

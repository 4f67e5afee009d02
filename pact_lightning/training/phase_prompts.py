"""Prompts of each phase: which tasks it draws, their rollouts, and the credit of these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.credit.group import CreditConfig, Group, make_group
from pact_lightning.rollout.ahead import RolledOut
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.runner import RolloutTotals
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.training.phase_report import phase_title
from pact_lightning.training.resampling import further_prompts, replace_groups
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.update.trace_source import TraceSource, shown_traces
from pact_lightning.utils.processes import share
from pact_lightning.utils.seeds import derive_seed, numpy_random
from pact_lightning.utils.text import counted

RollOut = Callable[[Sequence[RolloutRequest], RolloutTotals], RolledOut]
"""Function that rolls out some prompts of a phase and adds to its totals."""

Score = Callable[["Draw"], list[Group]]
"""Function that scores the rollouts of a phase that have not been scored, and returns the groups of all."""


@dataclass(frozen=True, slots=True)
class PhaseConfig:
    """Settings of a phase; the fields are those of ``RolloutDataModule``."""

    prompts_per_phase: int
    prompts_per_step: int
    rollouts_per_prompt: int
    sampling: SamplingConfig
    overlap: bool
    credit: CreditConfig
    seed: int
    resample_zero_variance: int | None = None
    trace_source: TraceSource = "expert"
    sft_source: Literal["expert", "shown"] = "expert"
    off_spec_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: They do not fit together, or rollouts are to see a trace that is no task's own.
        """
        if not 0.0 <= self.off_spec_share <= 1.0:
            raise ValueError(f"data.off_spec_share is a share of the rollouts, 0 to 1, not {self.off_spec_share}")
        if self.off_spec_share and self.trace_source != "expert":
            raise ValueError(
                f"data.off_spec_share shows rollouts their task's own trace, and data.trace_source is "
                f"{self.trace_source!r}, which is chosen after the rollouts; set one of the two back"
            )
        sizes = (self.prompts_per_phase, self.prompts_per_step, self.rollouts_per_prompt)
        if min(sizes) < 1 or self.prompts_per_phase % self.prompts_per_step:
            raise ValueError(
                f"data.prompts_per_phase ({self.prompts_per_phase}) must be a multiple of data.prompts_per_step "
                f"({self.prompts_per_step}), and both and data.rollouts_per_prompt at least 1"
            )

    @property
    def off_spec_rollouts(self) -> int:
        """Rollouts of a prompt that are sampled with its trace in their prompt."""
        return round(self.off_spec_share * self.rollouts_per_prompt)

    @property
    def steps(self) -> int:
        """Optimiser steps of a phase."""
        return self.prompts_per_phase // self.prompts_per_step


class Draw:
    """The prompts of a phase that this process has rolled out, in the task order.

    Args:
        phase: Number of the phase.

    Attributes:
        tasks: The tasks, each with its position in the run.
        results: The rollouts of each.
        off_spec: How many of each, the last ones, were sampled with the trace in their prompt.
        groups: The same with their credit, as far as they have been scored.
        totals: Counts, times and failures.
    """

    def __init__(self, phase: int) -> None:
        self.phase = phase
        self.tasks: list[tuple[int, Task]] = []
        self.results: list[list[Trajectory]] = []
        self.off_spec: list[int] = []
        self.groups: list[Group] = []
        self.totals = RolloutTotals(phase_title(phase))


class PhasePrompts:
    """The prompts of each phase: pass after pass over all tasks, each pass in a new order.

    Args:
        config: What a phase is made of.
        tasks: All tasks by name; those of ``train`` are drawn from, as they are when a phase begins.
        trainer: The Trainer.
        first_positions: Where phases begin in the task order, by phase, if further prompts have moved them: the present
            one and the next. Changed in place; the data module keeps it in checkpoints.
        with_trace: Words a task's prompt with its trace, for ``off_spec_share``; ``None`` where that does not fit.
    """

    def __init__(
        self,
        config: PhaseConfig,
        tasks: Mapping[str, Sequence[Task]],
        trainer: pl.Trainer,
        first_positions: dict[int, int],
        with_trace: Callable[[Task], PromptView | None] | None = None,
    ) -> None:
        self.config = config
        self._tasks = tasks
        self._trainer = trainer
        self._first_positions = first_positions
        self._with_trace = with_trace

    @property
    def steps(self) -> int:
        """Optimiser steps of a phase, ``limit_train_batches`` regarded: nothing is rolled out for the others."""
        return min(int(self._trainer.num_training_batches), self.config.steps)

    def roll_out(self, phase: int, run: RollOut, score: Score) -> Draw:
        """Roll out the prompts of a phase, and further ones in place of those without variance where that is asked for.

        Args:
            phase: Number of the phase.
            run: Rolls prompts out.
            score: Scores them, where their credit decides on further prompts.
        """
        draw, wanted = Draw(phase), self.steps * self.config.prompts_per_step
        bound = self.config.resample_zero_variance
        count = wanted
        while count:
            tasks = self._draw(phase, len(draw.tasks), count)
            requests = [self._requests(phase, position, task) for position, task in tasks]
            results, _ = run([request for of_task in requests for request in of_task], draw.totals)
            found = iter(results)
            draw.tasks += tasks
            draw.results += [_joined([next(found) for _ in of_task]) for of_task in requests]
            draw.off_spec += [
                of_task[-1].samples if of_task[-1].prompt is not task.prompt else 0
                for of_task, (_, task) in zip(requests, tasks, strict=True)
            ]
            if bound is None:
                return draw
            count = further_prompts(score(draw), wanted, bound * wanted)
            if count:
                rank_zero_info(
                    f"{phase_title(phase)}: too few of {counted(len(draw.groups), 'prompt')} gave a learning "
                    f"signal; rolling out {counted(count, 'further prompt')}"
                )
        replace_groups(draw.groups, wanted)
        return draw

    def score(self, draw: Draw) -> list[Group]:
        """Score the rollouts of a phase, but those that are scored; traces join here, after their prompts' rollouts.

        Returns:
            The groups of all prompts that were rolled out.

        Raises:
            RewardError: The reward fails.
        """
        done, config = len(draw.groups), self.config
        new = zip(draw.tasks[done:], draw.results[done:], draw.off_spec[done:], strict=True)
        for (position, task), rollouts, off_spec in new:
            group = make_group(
                task,
                rollouts,
                config.credit,
                temperature=config.sampling.temperature,
                phase=draw.phase,
                position=position,
            )
            group.shown = shown_traces(group, config.trace_source, self._tasks["train"], config.seed)
            group.imitate_shown = config.sft_source == "shown"
            first = config.rollouts_per_prompt - off_spec
            group.off_spec = tuple(n for n, rollout in enumerate(group.trajectories) if rollout.sample >= first)
            draw.groups.append(group)
        return draw.groups

    def note_end(self, draw: Draw) -> None:
        """Note where the next phase begins: after all prompts that this one has drawn."""
        first, usual = self._first_position(draw.phase), self.config.prompts_per_phase
        following = draw.phase + 1
        for phase in [phase for phase in self._first_positions if phase != draw.phase]:
            del self._first_positions[phase]
        end = first + max(usual, len(draw.tasks))
        if end != following * usual:
            self._first_positions[following] = end

    def _first_position(self, phase: int) -> int:
        return self._first_positions.get(phase, phase * self.config.prompts_per_phase)

    def _draw(self, phase: int, drawn: int, count: int) -> list[tuple[int, Task]]:
        """Draw this process's share of the next tasks of a phase, each with its position in the run."""
        tasks = self._tasks["train"]
        first = self._first_position(phase) + drawn
        chosen = []
        for position in range(first, first + count):
            visit, place = divmod(position, len(tasks))
            chosen.append((position, tasks[_order(self.config.seed, visit, len(tasks))[place]]))
        return share(self._trainer, chosen)

    def _requests(self, phase: int, position: int, task: Task) -> list[RolloutRequest]:
        """Ask for a prompt's rollouts; those that see its trace are a request of their own, behind the others."""
        seed = derive_seed(self.config.seed, phase, position)
        wanted, count = self.config.rollouts_per_prompt, self.config.off_spec_rollouts
        shown = task.trace is not None and task.trace.turns and count and self._with_trace and self._with_trace(task)
        if not shown:
            return [RolloutRequest(task.prompt, wanted, seed)]
        alone = [RolloutRequest(task.prompt, wanted - count, seed)] if count < wanted else []
        return [*alone, RolloutRequest(shown, count, seed)]  # the same seed: an environment begins alike for all


def _joined(parts: Sequence[list[Trajectory]]) -> list[Trajectory]:
    """Join the rollouts of a prompt's requests, counted through."""
    joined = [trajectory for part in parts for trajectory in part]
    for sample, trajectory in enumerate(joined):
        trajectory.sample = sample
    return joined


@cache
def _order(seed: int, visit: int, count: int) -> list[int]:
    order: list[int] = numpy_random("task-order", seed, visit).permutation(count).tolist()
    return order

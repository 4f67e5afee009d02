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

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: They do not fit together.
        """
        sizes = (self.prompts_per_phase, self.prompts_per_step, self.rollouts_per_prompt)
        if min(sizes) < 1 or self.prompts_per_phase % self.prompts_per_step:
            raise ValueError(
                f"data.prompts_per_phase ({self.prompts_per_phase}) must be a multiple of data.prompts_per_step "
                f"({self.prompts_per_step}), and both and data.rollouts_per_prompt at least 1"
            )

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
        groups: The same with their credit, as far as they have been scored.
        totals: Counts, times and failures.
    """

    def __init__(self, phase: int) -> None:
        self.phase = phase
        self.tasks: list[tuple[int, Task]] = []
        self.results: list[list[Trajectory]] = []
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
    """

    def __init__(
        self,
        config: PhaseConfig,
        tasks: Mapping[str, Sequence[Task]],
        trainer: pl.Trainer,
        first_positions: dict[int, int],
    ) -> None:
        self.config = config
        self._tasks = tasks
        self._trainer = trainer
        self._first_positions = first_positions

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
            results, _ = run([self._request(phase, position, task) for position, task in tasks], draw.totals)
            draw.tasks += tasks
            draw.results += results
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
        for (position, task), rollouts in zip(draw.tasks[done:], draw.results[done:], strict=True):
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

    def _request(self, phase: int, position: int, task: Task) -> RolloutRequest:
        seed = derive_seed(self.config.seed, phase, position)
        return RolloutRequest(task.prompt, self.config.rollouts_per_prompt, seed)


@cache
def _order(seed: int, visit: int, count: int) -> list[int]:
    order: list[int] = numpy_random("task-order", seed, visit).permutation(count).tolist()
    return order

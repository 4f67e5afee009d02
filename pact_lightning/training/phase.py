"""A phase, which is one epoch to Lightning: rollouts of the present policy, then their groups, one batch per step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pact_lightning.credit.group import CreditConfig, Group, make_group
from pact_lightning.rollout.ahead import Pause, RolledOut, RolloutsAhead, SampledBy, another_phase_follows
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.runner import RolloutRunner, rollouts_of
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.phase_report import PhaseReport, phase_title
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.processes import share
from pact_lightning.utils.seeds import derive_seed, numpy_random

_PROMPT = "prompt."


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


class PhaseRollouts:
    """The rollouts of each phase, with their credit; with ``overlap`` those of the next phase are made ahead.

    Args:
        config: What a phase is made of.
        tasks: All tasks by name; those of ``train`` are drawn from, as they are when a phase begins.
        module: The module in training.
        runner: Rolls out.
        made_ahead: The weights that sampled rollouts ahead of their phase, by phase: of the present one and the next.
            Changed in place; the data module keeps it in checkpoints, since Lightning restores the state of a loader
            within an epoch only.
    """

    def __init__(
        self,
        config: PhaseConfig,
        tasks: Mapping[str, Sequence[Task]],
        module: PACTModule,
        runner: RolloutRunner,
        made_ahead: dict[int, SampledBy],
    ) -> None:
        self.config = config
        self.module = module
        self.runner = runner
        self.made_ahead = made_ahead
        self.ahead: RolloutsAhead | None = None
        self.report = PhaseReport(runner.trainer)
        self._tasks = tasks

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer."""
        return self.runner.trainer

    @property
    def steps(self) -> int:
        """Optimiser steps of a phase, ``limit_train_batches`` regarded: nothing is rolled out for the others."""
        return min(int(self.trainer.num_training_batches), self.config.steps)

    def tasks(self, phase: int) -> list[tuple[int, Task]]:
        """Draw this process's tasks of a phase: pass after pass over all tasks, each in a new order.

        Returns:
            The tasks, each with its position in the run.
        """
        tasks = self._tasks["train"]
        first = phase * self.config.prompts_per_phase
        chosen = []
        for position in range(first, first + self.steps * self.config.prompts_per_step):
            visit, place = divmod(position, len(tasks))
            chosen.append((position, tasks[_order(self.config.seed, visit, len(tasks))[place]]))
        return share(self.trainer, chosen)

    def requests(self, phase: int) -> list[RolloutRequest]:
        """Return what this process rolls out in a phase: prompts alone."""
        return [
            RolloutRequest(task.prompt, self.config.rollouts_per_prompt, derive_seed(self.config.seed, phase, position))
            for position, task in self.tasks(phase)
        ]

    def take(self, phase: int) -> tuple[RolledOut, SampledBy | None]:
        """Take the rollouts of a phase that begins: those made ahead, else new ones of the present policy.

        Args:
            phase: Number of the phase.

        Returns:
            The rollouts, and the weights that sampled them where they were made ahead.

        Raises:
            EnvironmentUnavailableError: No rollout can go on, or none is of use; the state is saved before.
            SamplerUnavailableError: What samples is gone; the state is saved before.
        """
        running = self.ahead
        if running is not None and running.sampled_by.phase == phase:
            with self.runner.saved_where_stopped(phase_title(phase)):
                self.wait()
                rolled_out = running.result()
            self.ahead = None
            return rolled_out, running.sampled_by
        kept = self.made_ahead.pop(phase, None)  # in a run that was interrupted
        if kept is not None and self.config.overlap and self._has_all(phase, kept):
            self.made_ahead[phase] = kept
            return self.roll_out(phase, kept.policy), kept
        return self.roll_out(phase), None

    def roll_out(self, phase: int, policy: str | None = None) -> RolledOut:
        """Roll out a phase with the present policy.

        Args:
            phase: Number of the phase.
            policy: Name of the policy that sampled the phase, where that is gone: its rollouts must be on disk.
        """
        self.wait()
        clock = self.module.performance.clock
        requests, title = self.requests(phase), phase_title(phase)
        return self.runner.run(requests, self.config.sampling, title, policy=policy, clock=clock)

    def start_ahead(self, phase: int, policy: str) -> None:
        """Start the rollouts of the next phase beside the update of the present one, where that is asked for.

        The sampler gets the policy's weights before this returns.

        Args:
            phase: Number of the phase that begins; its own rollouts have ended.
            policy: Name of the present policy.

        Raises:
            SamplerUnavailableError: The sampler takes no weights; the state is saved before.
        """
        trainer = self.trainer
        sampled_by = SampledBy(phase + 1, policy, trainer.global_step)
        if not self.config.overlap or not another_phase_follows(
            phase,
            step=sampled_by.step,
            phase_steps=self.steps,
            max_phases=trainer.max_epochs,
            max_steps=trainer.max_steps,
        ):
            return
        requests, title, sampling = self.requests(phase + 1), phase_title(phase + 1), self.config.sampling
        with self.runner.saved_where_stopped(title), ExitStack() as stack:
            sampler = stack.enter_context(self.module.sampler_beside(sampling))
            lent = stack.pop_all()

        def work(pause: Pause) -> RolledOut:
            with lent:
                return self.runner.run_beside(requests, sampling, title, policy, sampler=sampler, pause=pause)

        self.ahead = RolloutsAhead(sampled_by, work)
        for number in [number for number in self.made_ahead if number != phase]:
            del self.made_ahead[number]
        self.made_ahead[phase + 1] = sampled_by

    def score(self, phase: int, results: Sequence[Sequence[Trajectory]]) -> list[Group]:
        """Score the rollouts of a phase; the expert traces join here, after the last rollout is done.

        Args:
            phase: Number of the phase.
            results: The rollouts, by task.

        Raises:
            RewardError: The reward fails.
        """
        config = self.config
        with self.module.performance.clock.measure("credit"):
            return [
                make_group(
                    task,
                    rollouts,
                    config.credit,
                    temperature=config.sampling.temperature,
                    phase=phase,
                    position=position,
                )
                for (position, task), rollouts in zip(self.tasks(phase), results, strict=True)
            ]

    def wait(self) -> None:
        """Wait for the rollouts that are made ahead: others would share the sampler with them [D]."""
        if self.ahead is not None:
            with self.module.performance.clock.measure("wait"):
                self.ahead.wait(self.module.interruption.between_sampler_steps)

    def drop(self) -> None:
        """End the rollouts that are made ahead."""
        if self.ahead is not None:
            self.ahead.drop()
            self.ahead = None

    def _has_all(self, phase: int, kept: SampledBy) -> bool:
        requests, title = self.requests(phase), phase_title(phase)
        wanted = rollouts_of(requests)
        known = self.runner.count_kept(requests, self.config.sampling, title, kept.policy)
        if known < wanted:
            rank_zero_info(
                f"{title}: {known} of {wanted} rollouts were made ahead before the interruption; the weights that "
                "sampled them are gone, so that all are made anew"
            )
        return known == wanted


class Phase:
    """The training loader: each iteration is a phase, each batch the groups of one optimiser step.

    Its state is what a phase needs that was interrupted after some of its steps: the name of the policy that began it,
    under which its rollouts and their log-probabilities under ``pi_old`` are on disk.

    Args:
        rollouts: Makes the rollouts.
    """

    def __init__(self, rollouts: PhaseRollouts) -> None:
        self.rollouts = rollouts
        self.policy = ""

    def __len__(self) -> int:
        return self.rollouts.config.steps

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint keeps."""
        return {"policy": self.policy}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up a phase where a checkpoint left it."""
        self.policy = state["policy"]

    def __iter__(self) -> Iterator[list[Group]]:
        interruption, trainer = self.rollouts.module.interruption, self.rollouts.trainer
        interruption.between_steps()
        phase = trainer.current_epoch
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        groups = self._resume(phase) if done else self._begin(phase)
        size = len(groups) // self.rollouts.steps
        for start in range(done * size, len(groups), size):
            if start > done * size:
                interruption.between_steps()
            yield groups[start : start + size]

    def _begin(self, phase: int) -> list[Group]:
        rollouts, module = self.rollouts, self.rollouts.module
        store = rollouts.runner.store
        store.drop(before=phase)
        self.policy = module.policy_name
        (results, stats), ahead = rollouts.take(phase)
        rollouts.start_ahead(phase, self.policy)
        with rollouts.runner.saved_where_stopped(phase_title(phase)):
            groups = rollouts.score(phase, results)
        rollouts.report.warn(groups, stats)
        rollouts.report.write(groups)
        module.log_phase(groups, stats, ahead)
        module.prepare_phase(groups, optimizer_steps=rollouts.steps)
        logps = {name: logp for group in groups for name, logp in _logps(group)}
        store.save_logps(phase_title(phase), self.policy, logps)
        return groups

    def _resume(self, phase: int) -> list[Group]:
        rollouts = self.rollouts
        ahead = rollouts.made_ahead.get(phase)
        results, _ = rollouts.roll_out(phase, self.policy if ahead is None else ahead.policy)
        groups = rollouts.score(phase, results)
        logps = rollouts.runner.store.read_logps(phase_title(phase), self.policy)
        for group in groups:
            names = _logp_names(group)
            group.old_logps = [logps[name] for name in names if name in logps] or None
            group.prompt_logps = [logps[_PROMPT + name] for name in names if _PROMPT + name in logps] or None
        rollouts.module.prepare_phase(groups, optimizer_steps=rollouts.steps)
        return groups


def _logp_names(group: Group) -> list[str]:
    return [f"{group.position}.{sample}" for sample in range(len(group.trajectories))]


def _logps(group: Group) -> Iterator[tuple[str, Tensor]]:
    names = _logp_names(group)
    yield from zip(names, group.old_logps or [], strict=False)
    yield from zip((_PROMPT + name for name in names), group.prompt_logps or [], strict=False)


@cache
def _order(seed: int, visit: int, count: int) -> list[int]:
    order: list[int] = numpy_random("task-order", seed, visit).permutation(count).tolist()
    return order

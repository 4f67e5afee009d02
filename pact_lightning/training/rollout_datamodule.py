"""RolloutDataModule: prompt-only tool interactions, made anew each epoch by the policy as it is then."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import cache
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pact_lightning.credit.group import CreditConfig, Group, make_group
from pact_lightning.environments.tool_calls import raised_responses
from pact_lightning.rollout.ahead import (
    Pause,
    RolledOut,
    RolloutsAhead,
    SampledBy,
    another_phase_follows,
    check_overlap,
)
from pact_lightning.rollout.engine import RolloutLimits, RolloutRequest, RolloutStats
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.rollout.reuse import rollouts_of
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.rollout.watch import watch_over
from pact_lightning.training.evaluation import EvaluationConfig
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.phase import Phase, phase_title
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.clock import PhaseClock
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.processes import check_shares, sum_over_processes
from pact_lightning.utils.seeds import derive_seed, numpy_random


class RolloutDataModule(TaskDataModule):
    """Prompt-only rollouts as training data: one epoch is one phase, one batch the groups of one optimiser step.

    Args:
        train: Training tasks.
        validation: Tasks for validation.
        test: Tasks for ``test``.
        predict: Tasks for ``predict``.
        prompts_per_phase: Prompts that a phase rolls out [P]: 256.
        prompts_per_step: Prompts of one optimiser step [P]: 32.
        rollouts_per_prompt: K [P]: 8.
        temperature: Sampling temperature of training [P]: 1.0.
        overlap: Make the rollouts of the next phase while the present one trains [D], by a sampler with weights of its
            own, such as :class:`~pact_lightning.VLLMServer`; they are one phase stale.
        evaluation: How the tasks of validation, test and prediction are rolled out.
        limits: Where rollouts end.
        credit: How rollouts earn their advantages.
        max_prompt_tokens: Tasks with a longer prompt are left out, counted and logged [P]: 7,000.
        seed: Seed of everything that is drawn.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    def __init__(
        self,
        *,
        train: TaskSource | None = None,
        validation: TaskSource | None = None,
        test: TaskSource | None = None,
        predict: TaskSource | None = None,
        prompts_per_phase: int = 256,
        prompts_per_step: int = 32,
        rollouts_per_prompt: int = 8,
        temperature: float = 1.0,
        overlap: bool = False,
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008  # frozen
        limits: RolloutLimits = RolloutLimits(),  # noqa: B008  # frozen
        credit: CreditConfig = CreditConfig(),  # noqa: B008  # frozen
        max_prompt_tokens: int = 7000,
        seed: int = 0,
        prefill_tokens: int = 16_384,
    ) -> None:
        super().__init__(
            validation=validation,
            test=test,
            predict=predict,
            evaluation=evaluation,
            limits=limits,
            max_prompt_tokens=max_prompt_tokens,
            seed=seed,
            prefill_tokens=prefill_tokens,
        )
        if min(prompts_per_phase, prompts_per_step, rollouts_per_prompt) < 1 or prompts_per_phase % prompts_per_step:
            raise ValueError(
                f"data.prompts_per_phase ({prompts_per_phase}) must be a multiple of data.prompts_per_step "
                f"({prompts_per_step}), and both and data.rollouts_per_prompt at least 1"
            )
        self.sources["train"] = train
        self.prompts_per_phase = prompts_per_phase
        self.prompts_per_step = prompts_per_step
        self.rollouts_per_prompt = rollouts_per_prompt
        self.sampling = SamplingConfig(temperature)
        self.overlap = overlap
        self._ahead: RolloutsAhead | None = None
        self.made_ahead: dict[int, SampledBy] = {}  # by phase: the one that trains, and the next
        self.credit = credit
        self._told_unanswered = False
        self._told_raised = False

    def setup(self, stage: str) -> None:
        """Loads the tasks and checks that everything fits.

        Raises:
            ValueError: There are no training tasks, they cannot be shared evenly by the processes that train, a
                rollout could not be trained on in one forward, or rollouts cannot be made beside the update.
        """
        if stage == "fit":
            if self.sources["train"] is None:
                raise ValueError("there are no training tasks; set data.train in the recipe")
            processes = 1 if self.trainer is None else self.trainer.world_size
            check_shares("data.prompts_per_step", self.prompts_per_step, processes)
            if self.overlap:
                check_overlap(self.module.sampler_backend, self.pact_module.importance_cap, processes)
            needed = self.max_prompt_tokens + self.limits.max_trajectory_tokens
            if needed > self.module.max_tokens_per_forward:
                raise ValueError(
                    f"a prompt of {self.max_prompt_tokens} and a trajectory of {self.limits.max_trajectory_tokens} "
                    f"tokens need {needed} tokens in one forward, over model.max_tokens_per_forward = "
                    f"{self.module.max_tokens_per_forward}; raise that or lower data.max_prompt_tokens or "
                    "data.limits.max_trajectory_tokens"
                )
        super().setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """Which weights sampled the rollouts that were made ahead."""
        return {"made_ahead": [asdict(by) for by in self.made_ahead.values()]} if self.made_ahead else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what a checkpoint kept."""
        self.made_ahead = {by["phase"]: SampledBy(**by) for by in state_dict.get("made_ahead", [])}

    def train_dataloader(self) -> Phase:
        """Phases: every iteration rolls out anew with the current policy."""
        return Phase(self)

    @property
    def needs_reward(self) -> bool:
        """Whether the environments' own ``reward()`` is what a rollout earns."""
        return self.credit.reward == "environment"

    @property
    def pact_module(self) -> PACTModule:
        """The module in training.

        Raises:
            TypeError: It is of another kind.
        """
        module = self.module
        if not isinstance(module, PACTModule):
            raise TypeError(f"rollouts train a PACTModule, not {type(module).__name__}; use it, or a TraceDataModule")
        return module

    def phase_tasks(self, phase: int) -> list[tuple[int, Task]]:
        """A phase's prompts with their position in the run: pass after pass over all tasks, each in a new order."""
        tasks = self.tasks["train"]
        first = phase * self.prompts_per_phase
        chosen = []
        for position in range(first, first + self.prompts_per_phase):
            visit, place = divmod(position, len(tasks))
            chosen.append((position, tasks[_order(self.seed, visit, len(tasks))[place]]))
        return chosen

    def phase_requests(self, phase: int) -> list[RolloutRequest]:
        """What this process rolls out in a phase: prompts alone."""
        return [
            RolloutRequest(task.prompt, self.rollouts_per_prompt, derive_seed(self.seed, phase, position))
            for position, task in self.share(self.phase_tasks(phase))
        ]

    def roll_out_phase(self, phase: int, policy: str | None = None) -> RolledOut:
        """Rolls out one phase with the current policy.

        Args:
            phase: Number of the phase.
            policy: Name of the policy that sampled the phase, where that is gone: its rollouts must be on disk.
        """
        clock = self.pact_module.performance.clock
        return self.rollout(self.phase_requests(phase), self.sampling, phase_title(phase), policy=policy, clock=clock)

    def take_phase(self, phase: int) -> tuple[RolledOut, SampledBy | None]:
        """The rollouts of a phase that begins: those that were made ahead, else those of the current policy.

        Args:
            phase: Number of the phase.

        Returns:
            The rollouts, and which weights sampled them, where they were made ahead.

        Raises:
            EnvironmentUnavailableError: No rollout can go on, or none is of use; the state is saved before.
            SamplerUnavailableError: What samples is gone; the state is saved before.
        """
        running = self._ahead
        if running is not None and running.sampled_by.phase == phase:
            with self.saved_where_stopped(phase_title(phase)):
                self._wait_for_ahead()
                rolled_out = running.result()
            self._ahead = None
            return rolled_out, running.sampled_by
        kept = self.made_ahead.pop(phase, None)  # in a run that was interrupted
        if kept is not None and self.overlap and self._has_all(phase, kept):
            self.made_ahead[phase] = kept
            return self.roll_out_phase(phase, kept.policy), kept
        return self.roll_out_phase(phase), None

    def _has_all(self, phase: int, kept: SampledBy) -> bool:
        requests, title = self.phase_requests(phase), phase_title(phase)
        wanted, known = rollouts_of(requests), self.kept_rollouts(requests, self.sampling, title, kept.policy)
        if known < wanted:
            rank_zero_info(
                f"{title}: {known} of {wanted} rollouts were made ahead before the interruption; the weights that "
                "sampled them are gone, so that all are made anew"
            )
        return known == wanted

    def start_ahead(self, phase: int, policy: str) -> None:
        """Starts the rollouts of the next phase beside the update of the present one, where that is asked for.

        The sampler gets the policy's weights before this returns.

        Args:
            phase: Number of the phase that begins; its own rollouts have ended.
            policy: Name of the current policy.

        Raises:
            SamplerUnavailableError: The sampler takes no weights; the state is saved before.
        """
        trainer = self.trainer
        assert trainer is not None
        sampled_by = SampledBy(phase + 1, policy, trainer.global_step)
        if not self.overlap or not another_phase_follows(
            phase,
            step=sampled_by.step,
            phase_steps=self.prompts_per_phase // self.prompts_per_step,
            max_phases=trainer.max_epochs,
            max_steps=trainer.max_steps,
        ):
            return
        requests, title = self.phase_requests(phase + 1), phase_title(phase + 1)
        with self.saved_where_stopped(title), ExitStack() as stack:
            sampler = stack.enter_context(self.pact_module.sampler_beside(self.sampling))
            lent = stack.pop_all()

        def work(pause: Pause) -> RolledOut:
            watch = watch_over(requests, title)
            with lent:
                found = self.roll_out_and_keep(
                    requests,
                    self.sampling,
                    title,
                    policy,
                    sampler=lambda: nullcontext(sampler),
                    pause=pause,
                    watch=watch,
                )
            watch.check_all(watch.counts())
            return found

        self._ahead = RolloutsAhead(sampled_by, work)
        self.made_ahead = {number: by for number, by in self.made_ahead.items() if number == phase}
        self.made_ahead[phase + 1] = sampled_by

    def rollout(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        *,
        policy: str | None = None,
        clock: PhaseClock | None = None,
    ) -> RolledOut:
        """As every data module does, once the rollouts that are made ahead have ended.

        A validation would share the sampler with them: each would slow the other one down, and the server would have
        to hold two adapters [D].
        """
        self._wait_for_ahead()
        return super().rollout(requests, sampling, what, policy=policy, clock=clock)

    def _wait_for_ahead(self) -> None:
        if self._ahead is not None:
            module = self.pact_module
            with module.performance.clock.measure("wait"):
                self._ahead.wait(module.interruption.between_sampler_steps)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.drop()
            self._ahead = None

    def on_exception(self, exception: BaseException) -> None:
        """Ends the rollouts that are made ahead: the run stops."""
        del exception
        self._drop_ahead()

    def teardown(self, stage: str) -> None:
        """Ends the rollouts that are made ahead, where a run ends before its last phase."""
        self._drop_ahead()
        super().teardown(stage)

    def score_phase(self, phase: int, results: Sequence[Sequence[Trajectory]]) -> list[Group]:
        """Scores the rollouts of a phase; the expert traces join here, after the last rollout is done."""
        with self.pact_module.performance.clock.measure("credit"):
            return [
                make_group(
                    task, rollouts, self.credit, temperature=self.sampling.temperature, phase=phase, position=position
                )
                for (position, task), rollouts in zip(self.share(self.phase_tasks(phase)), results, strict=True)
            ]

    def report_phase(self, phase: int, groups: Sequence[Group], stats: RolloutStats, ahead: SampledBy | None) -> None:
        """Writes the trajectories of a phase and logs its figures.

        Args:
            phase: Number of the phase.
            groups: Its groups.
            stats: What its rollouts took.
            ahead: The weights that sampled, where the rollouts were made ahead.
        """
        self._tell_of_failures(groups, stats)
        self._write(phase, groups)
        self.pact_module.log_phase(groups, stats, ahead)

    def _tell_of_failures(self, groups: Sequence[Group], stats: RolloutStats) -> None:
        """Warns of environments that could not be started, and once each of calls unanswered and of exceptions."""
        assert self.trainer is not None
        failed = [trajectory for group in groups for trajectory in group.failed]
        kept = [trajectory for group in groups for trajectory in group.trajectories]
        raised = [(trajectory.task_id, text) for trajectory in kept for text in raised_responses(trajectory)]
        counts = {"failed": len(failed), "kept": len(kept), "raised": len(raised)}
        found = sum_over_processes(
            self.trainer, counts | {"calls": stats.tool_calls, "unanswered": stats.unanswered_calls}
        )
        if found["raised"] and found["raised"] == found["calls"] and not self._told_raised:
            self._told_raised = True
            first = f"the first one, of task {raised[0][0]}: {raised[0][1]}" if raised else "all in other processes"
            rank_zero_warn(
                f"an exception ended every one of the {found['calls']:.0f} tool calls of phase {groups[0].phase}, so "
                f"that its rollouts teach nothing about the tools; {first}. It is not told again"
            )
        if found["failed"]:
            first = "none of them in this process; look at the trajectories of the others"
            if failed:
                first = f"the first one, of task {failed[0].task_id}: {' '.join(failed[0].turns[-1].responses)}"
            rank_zero_warn(
                f"{found['failed']:.0f} of {found['failed'] + found['kept']:.0f} rollouts of this phase have no "
                f"environment and are left out; {first}"
            )
        if found["unanswered"] and not self._told_unanswered:
            self._told_unanswered = True
            tasks = [trajectory.task_id for trajectory in kept if trajectory.unanswered_calls]
            where = f"such as in task {tasks[0]}" if tasks else "all in other processes"
            rank_zero_warn(
                f"nobody answered {found['unanswered']:.0f} of the {found['calls']:.0f} tool calls of phase "
                f"{groups[0].phase}, {where}; look at the "
                "trajectories. Later ones are counted in rollout/unanswered_calls and not told again"
            )

    def _write(self, phase: int, groups: Sequence[Group]) -> None:
        records = [
            trajectory_record(
                group.task.prompt, trajectory, rewards=rewards, advantages=advantages, phase=phase, kind=group.task.kind
            )
            for group in groups
            for trajectory, rewards, advantages in zip(
                group.trajectories, group.turn_rewards, group.advantages, strict=True
            )
        ]
        records += [
            trajectory_record(group.task.prompt, trajectory, phase=phase, kind=group.task.kind)
            for group in groups
            for trajectory in group.failed
        ]
        write_json_lines(
            self.run_folder() / "trajectories" / f"{phase_title(phase)}{self.rank_suffix()}.jsonl", records
        )


@cache
def _order(seed: int, visit: int, count: int) -> list[int]:
    order: list[int] = numpy_random("task-order", seed, visit).permutation(count).tolist()
    return order

"""RolloutDataModule: prompt-only tool interactions, made anew each epoch by the policy as it is then."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pact_lightning.group import CreditConfig, Group, make_group
from pact_lightning.module import PACTModule
from pact_lightning.rollout.engine import RolloutLimits, RolloutRequest, RolloutStats
from pact_lightning.rollout.record import trajectory_record
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.seeds import derive_seed, numpy_random
from pact_lightning.step_sync import check_shares, sum_over_processes
from pact_lightning.task_datamodule import EvaluationConfig, TaskDataModule
from pact_lightning.tasks.schema import Task
from pact_lightning.tasks.source import TaskSource
from pact_lightning.whole_files import write_json_lines


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
        self.credit = credit
        self._told_unanswered = False

    def setup(self, stage: str) -> None:
        """Loads the tasks and checks that everything fits.

        Raises:
            ValueError: There are no training tasks, they cannot be shared evenly by the processes that train, or a
                rollout could not be trained on in one forward.
        """
        if stage == "fit":
            if self.sources["train"] is None:
                raise ValueError("there are no training tasks; set data.train in the recipe")
            check_shares(
                "data.prompts_per_step", self.prompts_per_step, 1 if self.trainer is None else self.trainer.world_size
            )
            needed = self.max_prompt_tokens + self.limits.max_trajectory_tokens
            if needed > self.module.max_tokens_per_forward:
                raise ValueError(
                    f"a prompt of {self.max_prompt_tokens} and a trajectory of {self.limits.max_trajectory_tokens} "
                    f"tokens need {needed} tokens in one forward, over model.max_tokens_per_forward = "
                    f"{self.module.max_tokens_per_forward}; raise that or lower data.max_prompt_tokens or "
                    "data.limits.max_trajectory_tokens"
                )
        super().setup(stage)

    def train_dataloader(self) -> "Phase":
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

    def make_phase(self, phase: int, policy: str | None = None) -> list[Group]:
        """Rolls out one phase and scores it; the expert traces join after the last rollout is done.

        Args:
            phase: Number of the phase.
            policy: Name of the policy that began the phase, where the phase goes on after some of its steps: its
                rollouts are on disk then, and have been logged.
        """
        chosen = self.share(self.phase_tasks(phase))
        requests = [
            RolloutRequest(task.prompt, self.rollouts_per_prompt, derive_seed(self.seed, phase, position))
            for position, task in chosen
        ]
        clock = self.pact_module.performance.clock
        results, stats = self.rollout(requests, self.sampling, phase_title(phase), policy=policy, clock=clock)
        with clock.measure("credit"):
            groups = [
                make_group(
                    task, rollouts, self.credit, temperature=self.sampling.temperature, phase=phase, position=position
                )
                for (position, task), rollouts in zip(chosen, results, strict=True)
            ]
        if policy is None:
            self._tell_of_failures(groups, stats)
            self._write(phase, groups)
            self.pact_module.log_phase(groups, stats)
        return groups

    def _tell_of_failures(self, groups: Sequence[Group], stats: RolloutStats) -> None:
        """Warns of environments that could not be started, and once of calls that nobody answered."""
        assert self.trainer is not None
        failed = [trajectory for group in groups for trajectory in group.failed]
        kept = [trajectory for group in groups for trajectory in group.trajectories]
        counts = {"failed": len(failed), "kept": len(kept)}
        found = sum_over_processes(
            self.trainer, counts | {"calls": stats.tool_calls, "unanswered": stats.unanswered_calls}
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


class Phase:
    """One phase: rollouts with the current policy, then its groups in batches of one optimiser step.

    Its state is what a phase that was interrupted after some of its steps needs: the name of the policy that began it,
    under which its rollouts and their log-probabilities under ``pi_old`` are on disk.
    """

    def __init__(self, data: RolloutDataModule) -> None:
        self.data = data
        self.policy = ""

    def __len__(self) -> int:
        return self.data.prompts_per_phase // self.data.prompts_per_step

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return {"policy": self.policy}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Takes up a phase where a checkpoint left it."""
        self.policy = state["policy"]

    def __iter__(self) -> Iterator[list[Group]]:
        assert self.data.trainer is not None
        module = self.data.pact_module
        module.interruption.between_steps()
        phase = self.data.trainer.current_epoch
        done = self.data.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        groups = self._resume(phase) if done else self._begin(phase)
        size = len(groups) // len(self)
        for start in range(done * size, len(groups), size):
            if start > done * size:
                module.interruption.between_steps()
            yield groups[start : start + size]

    def _begin(self, phase: int) -> list[Group]:
        self.data.store.drop(before=phase)
        module = self.data.pact_module
        self.policy = module.policy_name
        groups = self.data.make_phase(phase)
        module.prepare_phase(groups, optimizer_steps=len(self))
        logps = {name: logp for group in groups for name, logp in _logps(group)}
        self.data.store.save_logps(phase_title(phase), self.policy, logps)
        return groups

    def _resume(self, phase: int) -> list[Group]:
        groups = self.data.make_phase(phase, self.policy)
        logps = self.data.store.read_logps(phase_title(phase), self.policy)
        for group in groups:
            names = _logp_names(group)
            group.old_logps = [logps[name] for name in names if name in logps] or None
            group.prompt_logps = [logps[_PROMPT + name] for name in names if _PROMPT + name in logps] or None
        self.data.pact_module.prepare_phase(groups, optimizer_steps=len(self))
        return groups


_PROMPT = "prompt."


def phase_title(phase: int) -> str:
    """Names the files of a phase."""
    return f"phase-{phase:04d}"


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

"""A phase, which is one epoch to Lightning: rollouts of the present policy, then their groups, one batch per step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pact_lightning.credit.group import Group
from pact_lightning.rollout.ahead import Pause, RolledOut, RolloutsAhead, SampledBy, another_phase_follows
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.runner import MissingRolloutsError, RolloutRunner, RolloutTotals
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.phase_prompts import Draw, PhasePrompts
from pact_lightning.training.phase_report import PhaseReport, phase_title

_PROMPT = "prompt."


class PhaseRollouts:
    """The rollouts of each phase, with their credit; with ``overlap`` those of the next phase are made ahead.

    Args:
        prompts: The prompts of each phase.
        module: The module in training.
        runner: Rolls out.
        made_ahead: The weights that sampled rollouts ahead of their phase, by phase: of the present one and the next.
            Changed in place; the data module keeps it in checkpoints, since Lightning restores the state of a loader
            within an epoch only.
    """

    def __init__(
        self,
        prompts: PhasePrompts,
        module: PACTModule,
        runner: RolloutRunner,
        made_ahead: dict[int, SampledBy],
    ) -> None:
        self.prompts = prompts
        self.config = prompts.config
        self.module = module
        self.runner = runner
        self.made_ahead = made_ahead
        self.ahead: RolloutsAhead[Draw] | None = None
        self.report = PhaseReport(runner.trainer)

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer."""
        return self.runner.trainer

    def take(self, phase: int) -> tuple[Draw, SampledBy | None]:
        """Take the rollouts of a phase that begins: those made ahead, else new ones of the present policy.

        Args:
            phase: Number of the phase.

        Returns:
            The rollouts, and the weights that sampled them where they were made ahead.

        Raises:
            EnvironmentUnavailableError: No rollout can go on, or none is of use; the state is saved before.
            SamplerUnavailableError: What samples is gone; the state is saved before.
            RewardError: Prompts are replaced, and the reward fails; the state is saved before.
        """
        running = self.ahead
        if running is not None and running.sampled_by.phase == phase:
            with self.runner.saved_where_stopped(phase_title(phase)):
                self.wait()
                draw = running.result()
            self.ahead = None
            self.prompts.note_end(draw)
            return draw, running.sampled_by
        kept = self.made_ahead.pop(phase, None)  # in a run that was interrupted
        if kept is not None and self.config.overlap:
            try:
                draw = self.roll_out(phase, kept.policy)
            except MissingRolloutsError as error:
                rank_zero_info(
                    f"{phase_title(phase)}: {error.known} of {error.wanted} rollouts were made ahead before the "
                    "interruption; the weights that sampled them are gone, so that all are made anew"
                )
            else:
                self.made_ahead[phase] = kept
                return draw, kept
        return self.roll_out(phase), None

    def roll_out(self, phase: int, policy: str | None = None) -> Draw:
        """Roll out a phase with the present policy.

        Args:
            phase: Number of the phase.
            policy: Name of the policy that sampled the phase, where that is gone: its rollouts must be on disk.

        Raises:
            MissingRolloutsError: ``policy`` is given, and some of its rollouts are not on disk.
        """
        self.wait()
        clock, title, sampling = self.module.performance.clock, phase_title(phase), self.config.sampling

        def run(requests: Sequence[RolloutRequest], totals: RolloutTotals) -> RolledOut:
            return self.runner.run(requests, sampling, title, policy=policy, clock=clock, totals=totals)

        draw = self.prompts.roll_out(phase, run, self.score)
        self.prompts.note_end(draw)
        return draw

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
            phase_steps=self.prompts.steps,
            max_phases=trainer.max_epochs,
            max_steps=trainer.max_steps,
        ):
            return
        title, sampling = phase_title(phase + 1), self.config.sampling
        with self.runner.saved_where_stopped(title), ExitStack() as stack:
            sampler = stack.enter_context(self.module.sampler_beside(sampling))
            lent = stack.pop_all()

        def work(pause: Pause) -> Draw:
            def run(requests: Sequence[RolloutRequest], totals: RolloutTotals) -> RolledOut:
                return self.runner.run_beside(
                    requests, sampling, title, policy, sampler=sampler, pause=pause, totals=totals
                )

            with lent:
                return self.prompts.roll_out(phase + 1, run, self.prompts.score)

        self.ahead = RolloutsAhead(sampled_by, work)
        for number in [number for number in self.made_ahead if number != phase]:
            del self.made_ahead[number]
        self.made_ahead[phase + 1] = sampled_by

    def score(self, draw: Draw) -> list[Group]:
        """Score the rollouts of a phase that have not been scored.

        Returns:
            The groups of all prompts that were rolled out.

        Raises:
            RewardError: The reward fails; the state is saved before.
        """
        with self.runner.saved_where_stopped(phase_title(draw.phase)), self.module.performance.clock.measure("credit"):
            return self.prompts.score(draw)

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
        size = len(groups) // self.rollouts.prompts.steps
        for start in range(done * size, len(groups), size):
            if start > done * size:
                interruption.between_steps()
            yield groups[start : start + size]

    def _begin(self, phase: int) -> list[Group]:
        rollouts, module = self.rollouts, self.rollouts.module
        store = rollouts.runner.store
        store.drop(before=phase)
        self.policy = module.policy_name
        draw, ahead = rollouts.take(phase)
        rollouts.start_ahead(phase, self.policy)
        drawn = rollouts.score(draw)
        rollouts.report.warn(drawn, draw.totals.stats)
        rollouts.report.write(drawn)
        module.log_phase(drawn, draw.totals.stats, ahead)
        groups = _trained(drawn)
        module.prepare_phase(groups, optimizer_steps=rollouts.prompts.steps)
        logps = {name: logp for group in groups for name, logp in _logps(group)}
        store.save_logps(phase_title(phase), self.policy, logps)
        return groups

    def _resume(self, phase: int) -> list[Group]:
        rollouts = self.rollouts
        ahead = rollouts.made_ahead.get(phase)
        groups = _trained(rollouts.score(rollouts.roll_out(phase, self.policy if ahead is None else ahead.policy)))
        logps = rollouts.runner.store.read_logps(phase_title(phase), self.policy)
        for group in groups:
            names = _logp_names(group)
            group.old_logps = [logps[name] for name in names if name in logps] or None
            group.prompt_logps = [logps[_PROMPT + name] for name in names if _PROMPT + name in logps] or None
        rollouts.module.prepare_phase(groups, optimizer_steps=rollouts.prompts.steps)
        return groups


def _trained(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if not group.replaced]


def _logp_names(group: Group) -> list[str]:
    return [f"{group.position}.{sample}" for sample in range(len(group.trajectories))]


def _logps(group: Group) -> Iterator[tuple[str, Tensor]]:
    names = _logp_names(group)
    yield from zip(names, group.old_logps or [], strict=False)
    yield from zip((_PROMPT + name for name in names), group.prompt_logps or [], strict=False)

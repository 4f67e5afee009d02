"""A phase as Lightning's epoch sees it: rollouts, then its groups in batches of one optimiser step."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pact_lightning.credit.group import Group

if TYPE_CHECKING:
    from pact_lightning.training.rollout_datamodule import RolloutDataModule

_PROMPT = "prompt."


class Phase:
    """One phase: rollouts with the current policy, then its groups in batches of one optimiser step.

    Its state is what a phase that was interrupted after some of its steps needs: the name of the policy that began it,
    under which its rollouts and their log-probabilities under ``pi_old`` are on disk. Which weights sampled rollouts
    that were made ahead, the data module keeps: Lightning restores the state of a loader within an epoch only.

    Args:
        data: Makes the rollouts.
    """

    def __init__(self, data: "RolloutDataModule") -> None:
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
        data, module = self.data, self.data.pact_module
        data.store.drop(before=phase)
        self.policy = module.policy_name
        (results, stats), ahead = data.take_phase(phase)
        data.start_ahead(phase, self.policy)
        with data.saved_where_stopped(phase_title(phase)):
            groups = data.score_phase(phase, results)
        data.report_phase(phase, groups, stats, ahead)
        module.prepare_phase(groups, optimizer_steps=len(self))
        logps = {name: logp for group in groups for name, logp in _logps(group)}
        data.store.save_logps(phase_title(phase), self.policy, logps)
        return groups

    def _resume(self, phase: int) -> list[Group]:
        ahead = self.data.made_ahead.get(phase)
        results, _ = self.data.roll_out_phase(phase, self.policy if ahead is None else ahead.policy)
        groups = self.data.score_phase(phase, results)
        logps = self.data.store.read_logps(phase_title(phase), self.policy)
        for group in groups:
            names = _logp_names(group)
            group.old_logps = [logps[name] for name in names if name in logps] or None
            group.prompt_logps = [logps[_PROMPT + name] for name in names if _PROMPT + name in logps] or None
        self.data.pact_module.prepare_phase(groups, optimizer_steps=len(self))
        return groups


def phase_title(phase: int) -> str:
    """Names the files of a phase."""
    return f"phase-{phase:04d}"


def _logp_names(group: Group) -> list[str]:
    return [f"{group.position}.{sample}" for sample in range(len(group.trajectories))]


def _logps(group: Group) -> Iterator[tuple[str, Tensor]]:
    names = _logp_names(group)
    yield from zip(names, group.old_logps or [], strict=False)
    yield from zip((_PROMPT + name for name in names), group.prompt_logps or [], strict=False)

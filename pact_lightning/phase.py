"""A phase as Lightning's epoch sees it: rollouts, then its groups in batches of one optimiser step."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pact_lightning.group import Group
from pact_lightning.phase_ahead import SampledBy

if TYPE_CHECKING:
    from pact_lightning.datamodule import RolloutDataModule

_PROMPT = "prompt."


class Phase:
    """One phase: rollouts with the current policy, then its groups in batches of one optimiser step.

    Its state is what a phase that was interrupted after some of its steps needs: the name of the policy that began it,
    under which its rollouts and their log-probabilities under ``pi_old`` are on disk. Where rollouts are made ahead, it
    also names the weights that sampled this phase's, and those that sample the next one's.

    Args:
        data: Makes the rollouts.
    """

    def __init__(self, data: "RolloutDataModule") -> None:
        self.data = data
        self.policy = ""
        self.sampled_by: SampledBy | None = None
        self.next_sampled_by: SampledBy | None = None

    def __len__(self) -> int:
        return self.data.prompts_per_phase // self.data.prompts_per_step

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ahead = {"sampled_by": self.sampled_by, "next_sampled_by": self.next_sampled_by}
        return {"policy": self.policy} | {name: asdict(by) for name, by in ahead.items() if by is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a phase where a checkpoint left it."""
        self.policy = state["policy"]
        self.sampled_by = SampledBy(**state["sampled_by"]) if "sampled_by" in state else None
        self.next_sampled_by = SampledBy(**state["next_sampled_by"]) if "next_sampled_by" in state else None

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
        # The next phase's weights are started before this phase's are forgotten: a checkpoint may be saved in between.
        earlier = (by for by in (self.next_sampled_by, self.sampled_by) if by is not None and by.phase == phase)
        (results, stats), sampled_by = data.take_phase(phase, next(earlier, None))
        self.next_sampled_by = data.start_ahead(phase, self.policy)
        self.sampled_by = sampled_by
        groups = data.score_phase(phase, results)
        data.report_phase(phase, groups, stats, sampled_by)
        module.prepare_phase(groups, optimizer_steps=len(self))
        logps = {name: logp for group in groups for name, logp in _logps(group)}
        data.store.save_logps(phase_title(phase), self.policy, logps)
        return groups

    def _resume(self, phase: int) -> list[Group]:
        sampled_by = self.policy if self.sampled_by is None else self.sampled_by.policy
        results, _ = self.data.roll_out_phase(phase, sampled_by)
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

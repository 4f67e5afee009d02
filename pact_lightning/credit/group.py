"""Group: the K rollouts of one prompt with rewards and advantages.

The expert trace joins here, after the rollouts exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pact_lightning.credit.advantages import Fusion, Scale, dual_level_advantages, is_zero_variance
from pact_lightning.credit.matching import MatchMethod
from pact_lightning.credit.reward import RewardFunction, make_reward
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace
from pact_lightning.types.trajectory import Trajectory

AnchorReason = Literal["drawn", "no_trace", "overlong"]


@dataclass(frozen=True)
class CreditConfig:
    """Settings of rewards and advantages (METHOD section 3).

    Attributes:
        reward: A name of :data:`~pact_lightning.credit.reward.REWARDS`, such as ``matchtir`` (every turn by its calls,
            the last by the answer [P]) or ``outcome`` (the answer alone, GRPO), or the import path of one of your own.
        reward_args: Further arguments of the reward.
        matching: Pairing of predicted and reference calls: ``hungarian`` [P], ``greedy`` or ``ot`` [C].
        unmatched_penalty: ``lambda_pen``, the cost of an unmatched or malformed call [P]: 0.
        gamma: Discount of later turns' rewards [C].
        eps: Added to the standard deviations [C].
        advantage_fusion: Fusion of trajectory and turn advantage: ``sum`` [P], ``mean`` [C], or ``trajectory`` alone.
        advantage_scale: Divisor of rewards less their mean: ``std``, their standard deviation [P], or ``none``, as
            Dr. GRPO.

    Raises:
        ValueError: There is no such reward.
        ImportError: The import path names none.
    """

    reward: str = "matchtir"
    reward_args: dict[str, Any] = field(default_factory=dict)
    matching: MatchMethod = "hungarian"
    unmatched_penalty: float = 0.0
    gamma: float = 0.9
    eps: float = 1e-6
    advantage_fusion: Fusion = "sum"
    advantage_scale: Scale = "std"

    def __post_init__(self) -> None:
        self.reward_function()  # a wrong name fails before anything is loaded

    def reward_function(self) -> RewardFunction:
        """Return the reward as a function of a rollout and its task."""
        return make_reward(
            self.reward,
            matching=self.matching,
            unmatched_penalty=self.unmatched_penalty,
            arguments=self.reward_args,
        )


@dataclass(frozen=True, slots=True)
class ShownTrace:
    """A trace in the privileged context of some rollouts of a group.

    Attributes:
        trace: The trace.
        rollouts: Indices of the rollouts that are scored under it.
        blank: Show as much white space in its place, token by token: a control.
    """

    trace: ExpertTrace
    rollouts: tuple[int, ...]
    blank: bool = False


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt in one phase.

    Attributes:
        task: The task; its trace is used in the optimisation only.
        trajectories: The K rollouts, without those that failed.
        turn_rewards: ``r_{k,t}``, per rollout and turn.
        advantages: ``A^g_k + A^l_{k,t}``, per rollout and turn; 0 for a single rollout.
        zero_variance: All advantages are 0, or no rollout is left.
        temperature: What they were sampled at; their log-probabilities in training are taken at the same.
        phase: Number of the phase.
        position: Number of this visit within the run; names the gate's draw.
        anchored: The reason for anchoring the prompt; ``None`` where its trace is used.
        shown: Traces in place of the task's own, by a ``data.trace_source`` other than ``expert``; else ``None``.
        imitate_shown: Whether the SFT term imitates the first of them, rather than the task's own.
        off_spec: Indices of rollouts that were sampled with the trace in their prompt (``data.off_spec_share``).
        failed: Rollouts without a policy token, since their environment did not start.
        replaced: Another prompt's group is trained on in its place (``data.resample_zero_variance``).
        old_logps: Log-probabilities under ``pi_old`` in the context of the ratio's denominator, per rollout ``[R_k]``;
            ``None`` where the phase makes one optimiser step only, where the ratio is 1 by construction.
        prompt_logps: Log-probabilities under ``pi_old`` and the prompt alone, per rollout ``[R_k]``; ``None`` where the
            sampler needs no correction, or where the ratio's denominator holds them already.
    """

    task: Task
    trajectories: list[Trajectory]
    turn_rewards: list[list[float]]
    advantages: list[list[float]]
    zero_variance: bool
    temperature: float = 1.0
    phase: int = 0
    position: int = 0
    anchored: AnchorReason | None = None
    shown: tuple[ShownTrace, ...] | None = None
    imitate_shown: bool = False
    off_spec: tuple[int, ...] = ()
    failed: list[Trajectory] = field(default_factory=list)
    replaced: bool = False
    old_logps: list[Tensor] | None = field(default=None, repr=False)
    prompt_logps: list[Tensor] | None = field(default=None, repr=False)

    @property
    def traces(self) -> tuple[ShownTrace, ...]:
        """The traces that its rollouts may be scored under; none where there is nothing to show."""
        if self.shown is not None:
            return self.shown
        own = self.task.trace
        return (ShownTrace(own, tuple(range(len(self.trajectories)))),) if own is not None and own.turns else ()

    @property
    def imitated(self) -> ExpertTrace | None:
        """The trace that the SFT term imitates."""
        if self.imitate_shown and self.shown:
            return self.shown[0].trace
        return self.task.trace

    @property
    def single(self) -> bool:
        """True if one rollout is left: there is none to compare it with, so that it has no RL term (METHOD 5.22)."""
        return len(self.trajectories) == 1

    @property
    def rewards(self) -> list[float]:
        """``R_k``, per rollout."""
        return [sum(rewards) for rewards in self.turn_rewards]

    def token_advantages(self, sample: int) -> Tensor:
        """Return the advantage of every token of a rollout, ``[R_k]``: that of its turn."""
        turns = self.trajectories[sample].turn_indices()
        return torch.from_numpy(np.asarray(self.advantages[sample], dtype=np.float32)[turns])

    def turn_indices(self, sample: int) -> Tensor:
        """Return the turn of every token of a rollout, ``[R_k]``."""
        return torch.from_numpy(self.trajectories[sample].turn_indices())

    @property
    def policy_tokens(self) -> int:
        """Number of policy tokens of all rollouts."""
        return sum(int(trajectory.policy_mask().sum()) for trajectory in self.trajectories)

    def policy_mask(self, sample: int) -> Tensor:
        """Return ``M_{i,k}``, the mask of policy tokens, ``[R_k]``.

        Raises:
            ValueError: The rollout has no policy token; its segments were not labelled.
        """
        mask = torch.from_numpy(self.trajectories[sample].policy_mask())
        if not bool(mask.any()):
            raise ValueError(f"rollout {sample} of task {self.task.id} has no policy token; its labels are wrong")
        return mask

    def sampled_logps(self, sample: int) -> Tensor:
        """Return the sampler's log-probabilities, ``[R_k]``; 0 at tokens that are not the policy's.

        Raises:
            ValueError: The trajectory does not hold one for each token of the policy.
        """
        mask, reported = self.policy_mask(sample), self.trajectories[sample].sampled_logps
        if len(reported) != int(mask.sum()):
            raise ValueError(
                f"rollout {sample} of task {self.task.id} has {int(mask.sum())} policy tokens and {len(reported)} "
                "log-probabilities of its sampler"
            )
        return torch.zeros(len(mask)).masked_scatter(mask, torch.tensor(reported))


def make_group(
    task: Task,
    trajectories: Sequence[Trajectory],
    credit: CreditConfig,
    *,
    temperature: float = 1.0,
    phase: int = 0,
    position: int = 0,
) -> Group:
    """Score the rollouts of a prompt and compute their advantages.

    Rollouts whose environment failed to start hold no policy token and are set apart. A group without any other
    rollout has zero variance: no rollout terms, but its trace, if it has one, is still imitated [D]. So is that of a
    group with a single rollout, whose raw return is no advantage over anything [D].
    """
    kept = [trajectory for trajectory in trajectories if trajectory.segments]
    failed = [trajectory for trajectory in trajectories if not trajectory.segments]
    reward = credit.reward_function()
    rewards = [reward(trajectory, task) for trajectory in kept]
    if len(kept) > 1:
        advantages = dual_level_advantages(
            rewards,
            gamma=credit.gamma,
            eps=credit.eps,
            fusion=credit.advantage_fusion,
            scale=credit.advantage_scale,
        )
    else:
        advantages = [[0.0] * len(turns) for turns in rewards]
    return Group(
        task=task,
        trajectories=kept,
        turn_rewards=rewards,
        advantages=advantages,
        zero_variance=len(kept) != 1 and is_zero_variance(advantages),
        temperature=temperature,
        phase=phase,
        position=position,
        failed=failed,
    )

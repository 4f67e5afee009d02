"""Metric of the turn-level reward: what MatchTIR's reward gives validation rollouts, whatever the training earns."""

import torch
from torch import Tensor

from pact_lightning.credit.matching import MatchMethod
from pact_lightning.credit.reward import make_reward
from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory


class TurnReward(RolloutMetric):
    """Mean ``R`` of rollouts: the sum of their turns' ``matchtir`` rewards (METHOD section 3) [P].

    The same measure for methods with different rewards. Recipes list it under ``model.metrics``. ``compute`` returns
    ``turn_reward``; tasks without reference calls and answer are not counted, and NaN stands for none.

    Args:
        matching: Pairing of calls.
        unmatched_penalty: Cost of an unmatched or malformed call.
    """

    total: Tensor
    count: Tensor

    def __init__(self, matching: MatchMethod = "hungarian", unmatched_penalty: float = 0.0) -> None:
        super().__init__()
        self._matching: MatchMethod = matching
        self._unmatched_penalty = unmatched_penalty
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, task: Task) -> None:
        """Add one rollout."""
        if task.reference.answer is None and not task.reference.calls:
            return
        reward = make_reward("matchtir", matching=self._matching, unmatched_penalty=self._unmatched_penalty)
        self.total += sum(reward(trajectory, task))
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the mean."""
        return {"turn_reward": self.total / self.count}

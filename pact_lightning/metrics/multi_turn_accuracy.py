"""BFCL's multi-turn accuracy: the share of tasks whose every user turn passes the leaderboard's check."""

from typing import get_args

import torch
from torch import Tensor

from pact_lightning.metrics.bfcl_check import bfcl_case, check_trajectory, is_correct
from pact_lightning.metrics.rollout_metric import RolloutMetric
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.bfcl_rows import Category
from pact_lightning.tasks.schema import Task

_CATEGORIES = get_args(Category)


class MultiTurnAccuracy(RolloutMetric):
    """Share of BFCL tasks solved, over all counted tasks and per category; tasks of other kinds are not counted.

    ``compute`` gives ``multi_turn_accuracy``, ``multi_turn_accuracy_{category}`` for ``base``, ``miss_func``,
    ``miss_param`` and ``long_context``, and ``multi_turn_tasks``, how many tasks were counted. NaN where none was. The
    leaderboard's own multi-turn figure is the mean over the categories, which is the same where each has as many tasks.
    """

    shares = ("multi_turn_accuracy", *(f"multi_turn_accuracy_{category}" for category in _CATEGORIES))
    correct: Tensor
    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "counted"):
            self.add_state(name, default=torch.zeros(len(_CATEGORIES), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, task: Task) -> None:
        """Adds one rollout.

        Args:
            trajectory: The rollout.
            task: Its task; left out where it is not BFCL's.
        """
        case = bfcl_case(task)
        if case is None:
            return
        place = _CATEGORIES.index(case.category)
        self.correct[place] += is_correct(check_trajectory(trajectory, task, case), case)
        self.counted[place] += 1

    def compute(self) -> dict[str, Tensor]:
        """The shares, and the number of tasks."""
        tasks = self.counted.sum()
        shares = [self.correct.sum() / tasks, *(self.correct / self.counted)]
        counts = {"multi_turn_tasks": tasks.float() if tasks else torch.tensor(torch.nan)}
        return dict(zip(self.shares, shares, strict=True)) | counts

"""FTRL's scores: how many expected answers the tool responses hold, and with how many calls."""

import torch
from torch import Tensor
from torchmetrics import Metric

from pact_lightning.metrics.solve_scores import count_solved, solve_scores
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Reference


def executed_calls(trajectory: Trajectory) -> list[tuple[str, str]]:
    """Tool name and response of every well-formed call of a rollout, in order."""
    return [
        (entry.call["name"], response)
        for turn in trajectory.turns
        # A rollout cut off in its last turn may hold calls that were never run.
        for entry, response in zip(turn.parsed, turn.responses, strict=False)
        if entry.call is not None
    ]


class SolveRate(Metric):
    """Mean Solve-P, Solve-R and Solve-F1 over rollouts. Tasks without expected answers are not counted.

    ``compute`` gives ``{"solve_p", "solve_r", "solve_f1"}``, each in ``[0, 1]``, NaN when no rollout counted.
    """

    full_state_update = False
    shares = ("solve_p", "solve_r", "solve_f1")
    sums: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, reference: Reference) -> None:
        """Adds one rollout.

        Args:
            trajectory: The rollout.
            reference: Its task's reference.
        """
        expected = len(reference.sub_answers)
        if not expected:
            return
        calls = executed_calls(trajectory)
        scores = solve_scores(expected, len(calls), count_solved(calls, reference.sub_answers))
        self.sums += torch.tensor(scores, dtype=self.sums.dtype, device=self.sums.device)
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The three means."""
        means = self.sums / self.count
        return {"solve_p": means[0], "solve_r": means[1], "solve_f1": means[2]}

"""FTRL's scores: how many expected answers the tool responses hold, and with how many calls."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from pact_lightning.credit.sub_answers import answer_in_response, first_solved
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Reference, SubAnswer

__all__ = [
    "SolveRate",
    "answer_in_response",
    "count_solved",
    "executed_calls",
    "open_answers",
    "solve_scores",
]


def open_answers(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> list[SubAnswer]:
    """The expected answers that the calls leave unsolved [C].

    Calls are taken in order; each solves at most one answer that is still open, the first one of its own tool that is
    in its response.

    Args:
        calls: Tool name and response of each call.
        sub_answers: The expected answers.
    """
    still_open = list(sub_answers)
    for tool, response in calls:
        solved = first_solved(tool, response, [(sub_answer.tool, sub_answer.answer) for sub_answer in still_open])
        if solved is not None:
            del still_open[solved]
    return still_open


def count_solved(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> int:
    """How many expected answers the calls solve; see :func:`open_answers`."""
    return len(sub_answers) - len(open_answers(calls, sub_answers))


def solve_scores(expected: int, calls: int, solved: int) -> tuple[float, float, float]:
    """``(Solve-P, Solve-R, Solve-F1) = (q/p, q/n, 2q/(p+n))``; Solve-P is 1 without a call [C].

    Args:
        expected: ``n``, at least 1.
        calls: ``p``.
        solved: ``q``.

    Raises:
        ValueError: ``expected`` is below 1.

    >>> solve_scores(2, 3, 1)
    (0.3333333333333333, 0.5, 0.4)
    """
    if expected < 1:
        raise ValueError("a task without expected answers has no solve scores; leave it out")
    precision = solved / calls if calls else 1.0
    return precision, solved / expected, 2 * solved / (calls + expected)


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

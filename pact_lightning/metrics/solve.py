"""Metrics of solved tasks: FTRL's solve rates, and the correctness of the final answer."""

import torch
from torch import Tensor
from torchmetrics import Metric

from pact_lightning.credit.answers import answers_match, count_solved, solve_scores
from pact_lightning.credit.rewards import extract_answer
from pact_lightning.types.task import Reference
from pact_lightning.types.trajectory import Trajectory


def executed_calls(trajectory: Trajectory) -> list[tuple[str, str]]:
    """Return tool name and response of every well-formed call of a rollout, in order."""
    return [
        (entry.call["name"], response)
        for turn in trajectory.turns
        # Calls of a last turn that was cut off were never run and have no response.
        for entry, response in zip(turn.parsed, turn.responses, strict=False)
        if entry.call is not None
    ]


class SolveRate(Metric):
    """FTRL's mean Solve-P, Solve-R and Solve-F1 over rollouts; tasks without expected answers are not counted.

    ``compute`` returns ``solve_p``, ``solve_r`` and ``solve_f1``, each in ``[0, 1]``; NaN if no rollout counted.
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
        """Add one rollout.

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
        """Return the three means."""
        means = self.sums / self.count
        return {"solve_p": means[0], "solve_r": means[1], "solve_f1": means[2]}


class AnswerCorrectness(Metric):
    """Shares of rollouts with the right final answer, and with a final answer at all.

    ``compute`` returns ``answer_correct`` over the rollouts whose task has a reference answer (a rollout without an
    answer is wrong), and ``answered`` over all. NaN where nothing was counted.
    """

    full_state_update = False
    shares = ("answer_correct", "answered")
    correct: Tensor
    scored: Tensor
    answered: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "scored", "answered", "total"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, reference: Reference) -> None:
        """Add one rollout.

        Args:
            trajectory: The rollout.
            reference: Its task's reference.
        """
        final = trajectory.final_answer
        answer = "" if final is None else extract_answer(final)
        self.total += 1
        self.answered += bool(answer)
        if reference.answer is not None:
            self.scored += 1
            self.correct += answers_match(answer, reference.answer)

    def compute(self) -> dict[str, Tensor]:
        """Return the two shares."""
        return {"answer_correct": self.correct / self.scored, "answered": self.answered / self.total}

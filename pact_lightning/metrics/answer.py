"""Whether the final answer is the right one."""

import torch
from torch import Tensor
from torchmetrics import Metric

from pact_lightning.credit.rewards import extract_answer
from pact_lightning.metrics.answer_match import answers_match
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Reference


class AnswerCorrectness(Metric):
    """Share of rollouts whose final answer is the reference answer, and share that give an answer at all.

    ``compute`` gives ``answer_correct``, over the rollouts whose task has a reference answer (a rollout without an
    answer is wrong), and ``answered``, over all. NaN where nothing was counted.
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
        """Adds one rollout.

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
        """The two shares."""
        return {"answer_correct": self.correct / self.scored, "answered": self.answered / self.total}

"""ToolHop's answer correctness, as its own code computes it, with all its quirks; and its invocation errors."""

import torch
from torch import Tensor

from pact_lightning.credit.answers import answer_in_response
from pact_lightning.environments.sandbox.code_tools import FAILURE_PREFIX
from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.tasks.toolhop.tasks import KIND
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory


def last_messages(trajectory: Trajectory) -> tuple[str, str | None] | None:
    """Return the texts in which an answer is looked for: the last message, and the tool response just before it.

    Returns:
        The text of the last turn after its reasoning [D] and, where the turn before it called tools, the last
        response; ``None`` where the last turn calls a tool or says nothing, and then no answer counts [C].
    """
    if not trajectory.turns or trajectory.turns[-1].parsed or not trajectory.turns[-1].answer:
        return None
    before = trajectory.turns[-2].responses if len(trajectory.turns) > 1 else ()
    return trajectory.turns[-1].answer, before[-1] if before else None


def official_match(answer: str, text: str) -> bool:
    """Return whether a text holds the answer by ToolHop's own test [C].

    Dots and zeros are cut off at the end of both, then commas are removed from the text; case is ignored. So an answer
    with a comma is never found, ``100`` is found as ``1``, and ``0`` in every text.

    >>> official_match("1920.0", "It was 1,920."), official_match("1,920", "It was 1,920.")
    (True, False)
    >>> official_match("100", "It is 21."), official_match("0", "no idea")
    (True, True)
    """
    return answer.rstrip(".0").lower() in text.rstrip(".0").replace(",", "").lower()


class ToolHopCorrectness(RolloutMetric):
    """Answer correctness and invocation errors over the rollouts of ToolHop tasks, told by their kind.

    ``compute`` gives, each in ``[0, 1]`` and NaN where nothing was counted:

    - ``toolhop_correct``: share of rows whose answer is in the last two messages by :func:`official_match` [C];
    - ``toolhop_correct_ftrl``: the same with FTRL's test of an answer, as MatchTIR reports it [C];
    - ``toolhop_invocation_error``: share of tool responses that start with ``an error occured when call`` [D]. Unknown
      tools and malformed calls are refused in other words before they reach the tools and are not among them; they
      are counted as ``unknown_tool`` and ``malformed_call``.

    Args:
        rows: Rows of the whole benchmark (995). Rows that were never rolled out count as wrong, as upstream counts
            them [C]; ``None`` counts only what was rolled out.
    """

    shares = ("toolhop_correct", "toolhop_correct_ftrl", "toolhop_invocation_error")
    correct: Tensor
    total: Tensor
    responses: Tensor
    failed: Tensor

    def __init__(self, rows: int | None = None) -> None:
        super().__init__()
        if rows is not None and rows < 1:
            raise ValueError(f"rows is the number of rows of the benchmark, at least 1, or null; got {rows}")
        self.rows = rows
        self.add_state("correct", default=torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("total", "responses", "failed"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, task: Task) -> None:
        """Add one rollout of a ToolHop task; others are left out.

        Args:
            trajectory: The rollout.
            task: Its task.
        """
        answer = task.reference.answer
        if task.kind != KIND or answer is None:
            return
        found = last_messages(trajectory)
        texts = [] if found is None else [text for text in found if text is not None]
        matches = (
            any(official_match(answer, text) for text in texts),
            any(answer_in_response(answer, text) for text in texts),
        )
        self.correct += torch.tensor(matches, dtype=self.correct.dtype, device=self.correct.device)
        self.total += 1
        responses = [response for turn in trajectory.turns for response in turn.responses]
        self.responses += len(responses)
        self.failed += sum(response.startswith(FAILURE_PREFIX) for response in responses)

    def compute(self) -> dict[str, Tensor]:
        """Return the three shares.

        Raises:
            ValueError: More rollouts were counted than the benchmark has rows.
        """
        if self.rows is not None and int(self.total) > self.rows:
            raise ValueError(
                f"{int(self.total)} ToolHop rollouts were counted, but rows says that there are {self.rows}"
            )
        # Without any rollout 0 / 0, so that other benchmarks' tables do not show it.
        rows = self.total if self.rows is None or not self.total else torch.full_like(self.total, self.rows)
        official, ftrl = self.correct / rows
        return {
            "toolhop_correct": official,
            "toolhop_correct_ftrl": ftrl,
            "toolhop_invocation_error": self.failed / self.responses,
        }

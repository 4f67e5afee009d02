"""What rollouts are worth and what they do: all metrics together, and the table that compares two moments of a run."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from torch import nn

from pact_lightning.metrics.answer import AnswerCorrectness
from pact_lightning.metrics.solve import SolveRate
from pact_lightning.metrics.tool_use import ToolUse
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Task

Scores = dict[str, float]

_SHARES = ("answer_correct", "answered", "solve_p", "solve_r", "solve_f1", "no_call", "malformed_call", "failed_call")


class EvaluationMetrics(nn.Module):
    """Solve rates, answer correctness and tool use of a set of rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = SolveRate()
        self.answer = AnswerCorrectness()
        self.tool_use = ToolUse()

    def update(self, task: Task, trajectory: Trajectory) -> None:
        """Adds one rollout."""
        self.solve.update(trajectory, task.reference)
        self.answer.update(trajectory, task.reference)
        self.tool_use.update(trajectory, task.prompt.tool_names)

    def compute(self) -> Scores:
        """All figures by name; those that no task allows (no reference answer, say) are absent."""
        values = self.answer.compute() | self.solve.compute() | self.tool_use.compute()
        scores = {name: float(value) for name, value in values.items()}
        return {name: value for name, value in scores.items() if not math.isnan(value)}

    def reset(self) -> None:
        """Starts afresh."""
        for metric in (self.solve, self.answer, self.tool_use):
            metric.reset()


def comparison_table(history: Sequence[tuple[int, Mapping[str, float]]]) -> Table:
    """The first and the last validation of a run side by side.

    Args:
        history: (finished phases, scores) of each validation, oldest first; at least one.
    """
    (first_phase, first), (last_phase, last) = history[0], history[-1]
    table = Table(title="Validation: greedy, prompt only")
    table.add_column("")
    table.add_column("before" if first_phase == 0 else f"after {first_phase}", justify="right")
    table.add_column(f"after {last_phase}", justify="right")
    table.add_column("change", justify="right")
    for name in last:
        if name not in first:
            continue
        change = last[name] - first[name]
        if name in _SHARES or name.startswith("stop_"):
            if not name.startswith("stop_") or first[name] or last[name]:
                cells = (f"{100 * first[name]:.1f} %", f"{100 * last[name]:.1f} %", f"{100 * change:+.1f}")
                table.add_row(name, *cells)
        else:
            table.add_row(name, f"{first[name]:.2f}", f"{last[name]:.2f}", f"{change:+.2f}")
    return table

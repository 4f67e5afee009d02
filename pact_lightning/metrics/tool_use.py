"""Metric of the tool use of rollouts, solved or not."""

import json
from collections.abc import Collection

import torch
from torch import Tensor
from torchmetrics import Metric

from pact_lightning.types.trajectory import StopReason, Trajectory

_STOPS = tuple(StopReason)


class ToolUse(Metric):
    """Means and shares of tool use over rollouts; early signs of a collapse (METHOD section 9).

    ``compute`` returns, per rollout: ``turns``, ``calls`` (malformed ones not among them, nor those that a limit cut
    off before they ran) and ``unique_calls`` (a call with the same name and arguments counts once); and shares of
    rollouts: ``no_call`` (without such a call),
    ``malformed_call``, ``failed_call`` (a well-formed call whose response reports an error), ``unknown_tool``, and
    ``stop_{reason}`` for every stop reason. NaN before the first rollout.
    """

    full_state_update = False
    names = ("turns", "calls", "unique_calls", "no_call", "malformed_call", "failed_call", "unknown_tool")
    shares = (*names[3:], *(f"stop_{reason}" for reason in _STOPS))
    sums: Tensor
    stops: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("stops", default=torch.zeros(len(_STOPS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory: Trajectory, tool_names: Collection[str]) -> None:
        """Add one rollout.

        Args:
            trajectory: The rollout.
            tool_names: The names of its task's tools.
        """
        calls = [call for run in trajectory.calls_run() for call in run]
        failed = any(
            entry.call is not None and error
            for turn in trajectory.turns
            # Calls of a last turn that was cut off were never run and have no response.
            for entry, error in zip(turn.parsed, turn.errors, strict=False)
        )
        row = (
            len(trajectory.turns),
            len(calls),
            len({json.dumps(call, sort_keys=True) for call in calls}),
            not calls,
            any(entry.call is None for turn in trajectory.turns for entry in turn.parsed),
            failed,
            any(call["name"] not in tool_names for call in calls),
        )
        self.sums += torch.tensor(row, dtype=self.sums.dtype, device=self.sums.device)
        self.stops[_STOPS.index(trajectory.stop_reason)] += 1
        self.total += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the means and shares."""
        means = dict(zip(self.names, self.sums / self.total, strict=True))
        stops = {f"stop_{reason}": share for reason, share in zip(_STOPS, self.stops / self.total, strict=True)}
        return means | stops

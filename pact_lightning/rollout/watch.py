"""Rollouts whose environments are of no use: where none starts, or nobody answers any call, the run stops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.types.trajectory import StopReason, Trajectory

_ENOUGH = 32
"""Tasks without one success after which the rest is not tried [D]. Where half of all fail by chance, that many in a row
come once in four billion times."""


class UselessEnvironmentsError(EnvironmentUnavailableError):
    """All environments of a run of rollouts failed; its rollouts are not worth keeping."""


@dataclass
class _Tally:
    """Successes, and tasks that have seen a failure.

    Attributes:
        words: What can be said where there was no success.
        successes: Rollouts that had one.
        failed: Tasks of rollouts that had none though they tried.
        first: The first failure, in words.
    """

    words: str
    successes: int = 0
    failed: set[str] = field(default_factory=set)
    first: str = ""

    def failure(self, trajectory: Trajectory) -> None:
        self.failed.add(trajectory.task_id)
        if not self.first:
            responses = [response for turn in trajectory.turns for response in turn.responses]
            self.first = f"the first one, of task {trajectory.task_id}: {' '.join(responses[:1]).rstrip('.')}"

    def error(self, what: str, tasks: float) -> UselessEnvironmentsError:
        first = self.first or "none of them in this process; look at what the others say"
        return UselessEnvironmentsError(f"{self.words} {what} ({tasks:.0f} tasks), and the run stops; {first}")


class EnvironmentWatch:
    """Follows the rollouts of a phase or an evaluation as they end.

    A share of failures is nothing to stop for; it is counted elsewhere. Calls that a tool refuses count as answered:
    they are the policy's mistakes.

    Args:
        what: Name of the phase or evaluation.
        tasks: How many different tasks it has.
    """

    def __init__(self, what: str, tasks: int) -> None:
        self.what = what
        self.tasks = tasks
        self._tallies = {
            "starts": _Tally("no environment could be started in"),
            "calls": _Tally("nobody answered any tool call of"),
        }

    def add(self, trajectory: Trajectory) -> None:
        """Takes a rollout that had ended before."""
        starts, calls = self._tallies.values()
        if trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED:
            starts.failure(trajectory)
            return
        starts.successes += 1
        if trajectory.tool_calls > trajectory.unanswered_calls:
            calls.successes += 1
        elif trajectory.tool_calls:
            calls.failure(trajectory)

    def ended(self, trajectory: Trajectory) -> None:
        """Takes a rollout that has just ended, and looks whether it is worth going on.

        Raises:
            UselessEnvironmentsError: It is not.
        """
        self.add(trajectory)
        for tally in self._tallies.values():
            if not tally.successes and len(tally.failed) >= _ENOUGH:
                raise tally.error(self.what, len(tally.failed))

    def counts(self) -> dict[str, float]:
        """What :meth:`check_all` needs of each process; counts of several processes add up."""
        found: dict[str, float] = {"tasks": self.tasks}
        for name, tally in self._tallies.items():
            found |= {f"{name}_succeeded": tally.successes, f"{name}_failed": len(tally.failed)}
        return found

    def check_all(self, counts: Mapping[str, float]) -> None:
        """Looks at the end, at the rollouts of all processes.

        Args:
            counts: Sums of :meth:`counts` over the processes.

        Raises:
            UselessEnvironmentsError: Every task has failed, and no rollout has not.
        """
        for name, tally in self._tallies.items():
            failed = counts[f"{name}_failed"]
            if failed and failed == counts["tasks"] and not counts[f"{name}_succeeded"]:
                raise tally.error(self.what, failed)


def watch_over(requests: Sequence[RolloutRequest], what: str) -> EnvironmentWatch:
    """A watch of the rollouts that are asked for.

    Args:
        requests: They.
        what: Name of the phase or evaluation.
    """
    return EnvironmentWatch(what, len({request.prompt.id for request in requests}))

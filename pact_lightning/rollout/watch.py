"""Early stop of runs whose environments never start, or never answer a tool call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.types.trajectory import StopReason, Trajectory

_ENOUGH = 32
"""Failed tasks without one success after which the run stops [D]. If half of all tasks fail by chance, 32 in a row
happen once in four billion times."""


class UselessEnvironmentsError(EnvironmentUnavailableError):
    """Error for a run of rollouts whose environments have all failed; its rollouts are not worth keeping."""


@dataclass
class _Tally:
    """Tally of rollouts in which something succeeded, and of tasks for which it failed.

    Attributes:
        words: Start of the error message.
        successes: Rollouts with a success.
        failed: Tasks of the rollouts that tried without success.
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
        first = self.first or "see the messages of the other processes"
        return UselessEnvironmentsError(f"{self.words} {what} ({tasks:.0f} tasks), and the run stops; {first}")


class EnvironmentWatch:
    """Count of environment failures over the rollouts of a phase or an evaluation.

    Some failures do not stop a run; they are counted elsewhere. Calls that a tool refuses count as answered, since they
    are the policy's mistakes.

    Args:
        what: Name of the phase or evaluation.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._tasks: set[str] = set()
        self._tallies = {
            "starts": _Tally("no environment could be started in"),
            "calls": _Tally("no tool call was answered in"),
        }

    def expect(self, tasks: Iterable[str]) -> None:
        """Take in the ids of tasks that will be rolled out; further ones may follow."""
        self._tasks.update(tasks)

    def add(self, trajectory: Trajectory) -> None:
        """Count a rollout that had ended before."""
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
        """Count a rollout that has just ended, and stop the run after too many failures.

        Raises:
            UselessEnvironmentsError: Many tasks have failed, and no rollout has succeeded.
        """
        self.add(trajectory)
        for tally in self._tallies.values():
            if not tally.successes and len(tally.failed) >= _ENOUGH:
                raise tally.error(self.what, len(tally.failed))

    def counts(self) -> dict[str, float]:
        """Return this process's counts for :meth:`check_all`; those of several processes add up."""
        found: dict[str, float] = {"tasks": len(self._tasks)}
        for name, tally in self._tallies.items():
            found |= {f"{name}_succeeded": tally.successes, f"{name}_failed": len(tally.failed)}
        return found

    def check_all(self, counts: Mapping[str, float]) -> None:
        """Check the rollouts of all processes at the end.

        Args:
            counts: Sums of :meth:`counts` over the processes.

        Raises:
            UselessEnvironmentsError: Every task has failed, and no rollout has succeeded.
        """
        for name, tally in self._tallies.items():
            failed = counts[f"{name}_failed"]
            if failed and failed == counts["tasks"] and not counts[f"{name}_succeeded"]:
                raise tally.error(self.what, failed)

"""BFCL's multi-turn check of rollouts [C], the reward ``bfcl`` and the metric ``MultiTurnAccuracy`` made of it.

The calls of a rollout and those of the ground truth are run side by side on fresh instances of the simulated APIs, and
states and responses are compared after every user turn. The verdict is the one of the leaderboard's own checker
(``multi_turn_checker``); a test compares the two.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.tasks.bfcl.environment import BFCLEnvironment, Scenario, SimulatedAPIs
from pact_lightning.tasks.bfcl.rows import Category
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory
from pact_lightning.utils.imports import import_path


@dataclass(frozen=True, slots=True)
class BFCLCase:
    """Ground truth and start that a BFCL task is checked against.

    Attributes:
        scenario: Its start.
        ground_truth: Calls per user turn.
        category: BFCL's category.
    """

    scenario: Scenario
    ground_truth: tuple[tuple[ToolCall, ...], ...]
    category: Category


@dataclass(frozen=True, slots=True)
class UserTurnCheck:
    """Result of the calls of one user turn.

    Attributes:
        called: The policy called something, or the ground truth calls nothing.
        state: Every API has the public state that the ground truth leads to.
        found: Number of the ground truth's responses of this user turn that are among the policy's so far.
        wanted: Number of the ground truth's responses of this user turn.
    """

    called: bool
    state: bool
    found: int
    wanted: int

    @property
    def valid(self) -> bool:
        """The leaderboard's verdict on this user turn; one without ground-truth calls is not judged."""
        return not self.wanted or (self.called and self.state and self.found == self.wanted)


def bfcl_case(task: Task) -> BFCLCase | None:
    """Return what the task is checked against; ``None`` for a task that is not BFCL's."""
    if "ground_truth" not in task.metadata:
        return None
    found = import_path(task.prompt.environment.class_path, "environment class")
    if not (isinstance(found, type) and issubclass(found, BFCLEnvironment)):
        return None
    turns = tuple(
        tuple(ToolCall(name=call["name"], arguments=call["arguments"]) for call in calls)
        for calls in task.metadata["ground_truth"]
    )
    return BFCLCase(Scenario(**task.prompt.environment.init_args), turns, task.metadata["category"])


def check_trajectory(trajectory: Trajectory, task: Task, case: BFCLCase) -> list[UserTurnCheck]:
    """Check every user turn that a rollout came to.

    Args:
        trajectory: The rollout.
        task: Its task.
        case: Its ground truth and start.

    Returns:
        One entry per user turn, in order; fewer than the task has where a limit ended the rollout before, and none
        where the environment failed.
    """
    if trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED:
        return []
    turns = user_turns(trajectory)
    offered = [frozenset(task.prompt.tool_names_after(released)) for released in range(len(turns))]
    return check_calls([list(_ran(group, names)) for group, names in zip(turns, offered, strict=True)], case)


def check_calls(calls: Sequence[Sequence[ToolCall | None]], case: BFCLCase) -> list[UserTurnCheck]:
    """Check the calls of every user turn.

    Args:
        calls: Calls per user turn, in order; ``None`` stands for one that was refused before it could run.
        case: The task's ground truth and start.

    Returns:
        One entry per user turn.
    """
    policy, expert = SimulatedAPIs(case.scenario), SimulatedAPIs(case.scenario)
    responses: Counter[str] = Counter()  # of all user turns so far: what was asked before need not be asked again
    checks = []
    for predicted, wanted_calls in zip(calls, case.ground_truth, strict=False):
        responses.update(_responses(policy, (call for call in predicted if call is not None)))
        wanted = Counter(_responses(expert, wanted_calls))
        checks.append(
            UserTurnCheck(
                called=bool(predicted) or not wanted_calls,
                state=not policy.differing(expert),
                found=(wanted & responses).total(),
                wanted=wanted.total(),
            )
        )
    return checks


def is_correct(checks: Sequence[UserTurnCheck], case: BFCLCase) -> bool:
    """Return the leaderboard's verdict on a rollout: it came to every user turn, and each is valid.

    A rollout that a limit ended within its last user turn is judged by what it had done, as there [C].
    """
    return len(checks) == len(case.ground_truth) and all(check.valid for check in checks)


def user_turns(trajectory: Trajectory) -> list[list[RolloutTurn]]:
    """Group the turns of a rollout by user turn, in order."""
    groups: list[list[RolloutTurn]] = [[]]
    for turn in trajectory.turns:
        groups[-1].append(turn)
        if turn.user is not None:
            groups.append([])
    return groups


def _ran(turns: Iterable[RolloutTurn], offered: frozenset[str]) -> Iterable[ToolCall | None]:
    """Yield the calls that ran, and ``None`` for those of functions not offered; malformed ones are no calls."""
    for turn in turns:
        # A rollout cut off in its last turn may hold calls that were never run.
        for entry, _ in zip(turn.parsed, turn.responses, strict=False):
            if entry.call is not None:
                yield entry.call if entry.call["name"] in offered else None


def _responses(apis: SimulatedAPIs, calls: Iterable[ToolCall]) -> list[str]:
    return [apis.call(call["name"], call["arguments"]).text for call in calls]


def bfcl_reward(trajectory: Trajectory, task: Task, *, state_weight: float = 0.5) -> list[float]:
    """Return the reward of every turn of a rollout [D].

    A user turn whose ground truth calls something is worth ``state_weight`` where the state is right, plus
    ``1 - state_weight`` times the share of the ground truth's responses that the policy has got so far. It is worth 0
    where the policy called nothing: idling in front of an untouched state earns nothing. A user turn without
    ground-truth calls is worth 0, since the leaderboard does not judge it; its effect shows in the state of the next
    one. The reward is earned by the last turn of the user turn.

    Args:
        trajectory: The rollout.
        task: Its task.
        state_weight: Weight of the state, in ``[0, 1]``.

    Returns:
        One reward per turn, ``[T]``, each in ``[0, 1]``.

    Raises:
        ValueError: The task is not BFCL's, or the weight is out of range.
    """
    if not 0 <= state_weight <= 1:
        raise ValueError(f"state_weight must be between 0 and 1, got {state_weight}")
    case = bfcl_case(task)
    if case is None:
        raise ValueError(
            f"the reward bfcl needs tasks of pact_lightning.BFCLTasks; task {task.id!r} is not one of them"
        )
    rewards = [0.0] * len(trajectory.turns)
    last = -1
    for turns, check in zip(user_turns(trajectory), check_trajectory(trajectory, task, case), strict=False):
        last += len(turns)
        if turns:
            rewards[last] = _worth(check, state_weight)
    return rewards


def _worth(check: UserTurnCheck, state_weight: float) -> float:
    if not check.wanted or not check.called:
        return 0.0
    return state_weight * check.state + (1 - state_weight) * check.found / check.wanted


_CATEGORIES = get_args(Category)


class MultiTurnAccuracy(RolloutMetric):
    """Share of BFCL tasks solved, over all counted tasks and per category; tasks of other kinds are not counted.

    ``compute`` gives ``multi_turn_accuracy``, ``multi_turn_accuracy_{category}`` for ``base``, ``miss_func``,
    ``miss_param`` and ``long_context``, and ``multi_turn_tasks``, the number of tasks counted. NaN where none was. The
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
        """Add one rollout.

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
        """Return the shares, and the number of tasks."""
        tasks = self.counted.sum()
        shares = [self.correct.sum() / tasks, *(self.correct / self.counted)]
        counts = {"multi_turn_tasks": tasks.float() if tasks else torch.tensor(torch.nan)}
        return dict(zip(self.shares, shares, strict=True)) | counts

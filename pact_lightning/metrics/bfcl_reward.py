"""The reward ``bfcl``: every user turn of a BFCL task by its state and its responses."""

from pact_lightning.metrics.bfcl_check import UserTurnCheck, bfcl_case, check_trajectory, user_turns
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.schema import Task


def bfcl_reward(trajectory: Trajectory, task: Task, *, state_weight: float = 0.5) -> list[float]:
    """What every turn of a rollout is worth [D].

    A user turn whose ground truth calls something is worth ``state_weight`` where the state is right, plus
    ``1 - state_weight`` times the share of the ground truth's responses that the policy has got so far, and 0 where
    the policy called nothing: so that idling in front of an untouched state earns nothing. A user turn without
    ground-truth calls is worth 0, since the leaderboard does not judge it; what is done there shows in the state of
    the next one. The reward is earned by the last turn of the user turn.

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
            f"the reward bfcl needs tasks of pact_lightning.tasks.bfcl.BFCLTasks; task {task.id!r} is none"
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

"""Success of a rollout, as one bit."""

from pact_lightning.credit.rewards import answer_f1, extract_answer
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory


def succeeded(trajectory: Trajectory, task: Task) -> bool:
    """Return whether a rollout solved its task [D].

    It answered, and has all words of the reference's answer and no others; without a reference, its environment
    rewards it with at least 1.

    Args:
        trajectory: The rollout.
        task: Its task.
    """
    if trajectory.final_answer is None:
        return False
    if task.reference.answer is not None:
        return answer_f1(extract_answer(trajectory.final_answer), task.reference.answer) == 1.0
    return trajectory.environment_reward is not None and trajectory.environment_reward >= 1.0

"""Reward functions by name or import path: one number per turn of a rollout."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol

from pact_lightning.credit.advantages import LARGEST_REWARD
from pact_lightning.credit.matching import MatchMethod
from pact_lightning.credit.other_rewards import ftrl_rewards, toolrl_rewards
from pact_lightning.credit.rewards import outcome_reward, turn_rewards
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import CUT_OFF, RolloutTurn, Trajectory
from pact_lightning.utils.errors import FAILURES, RunStoppedError, named_failure, shortened
from pact_lightning.utils.imports import import_path


class RewardError(RunStoppedError, ValueError):
    """Failure of a user's reward function, or a result that cannot be trained on; it stops the run."""

    once = "it is mended"


class RewardFunction(Protocol):
    """Scorer of one rollout; a plain function will do."""

    def __call__(self, trajectory: Trajectory, task: Task) -> list[float]:
        """Return ``r_{k,t}``: one finite reward per turn of the rollout, ``[T]``."""
        ...


def make_reward(
    name: str,
    *,
    matching: MatchMethod = "hungarian",
    unmatched_penalty: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
) -> RewardFunction:
    """Return the reward function of a name or import path.

    Args:
        name: A key of :data:`REWARDS`, or the import path of a :class:`RewardFunction`: a function, or a class whose
            objects are such functions.
        matching: Pairing of calls under ``matchtir``.
        unmatched_penalty: Cost of an unmatched or malformed call under ``matchtir``.
        arguments: Further keyword arguments of a function, or the constructor arguments of a class.

    Returns:
        The reward function. It raises :class:`RewardError` where the function found fails, or returns anything but
        one finite number per turn, of size up to :data:`~pact_lightning.credit.advantages.LARGEST_REWARD`.

    Raises:
        ValueError: The name is unknown, or the object at the path cannot be called.
        ImportError: Nothing can be imported from the path.
    """
    given = dict(arguments or {})
    if name == "matchtir":
        given = {"method": matching, "unmatched_penalty": unmatched_penalty} | given
    found = REWARDS.get(name, name)
    if not isinstance(found, str):
        reward: Any = partial(found, **given)
    elif "." in found:
        reward = _imported(found, given)
    else:
        known = ", ".join(REWARDS)
        raise ValueError(f"there is no reward {name!r}; use one of {known}, or the import path of one of your own")

    def checked(trajectory: Trajectory, task: Task) -> list[float]:
        try:
            given = reward(trajectory, task)
            given = list(given) if isinstance(given, Iterator) else given
        except FAILURES as error:  # the user's code: whatever it raises is told with its place
            place = extract_tb(error.__traceback__)[-1]
            problem = f"{named_failure(error)} ({Path(place.filename).name}, line {place.lineno})"
            raise RewardError(
                f"data.credit.reward {name!r} failed on a rollout of task {task.id}: {problem}"
            ) from error
        try:
            values = [float(value) for value in given]
        except (TypeError, ValueError):
            values = []
        if len(values) != len(trajectory.turns) or not all(abs(value) <= LARGEST_REWARD for value in values):
            raise RewardError(
                f"data.credit.reward {name!r} gave {shortened(given)} for a rollout of {len(trajectory.turns)} turns "
                f"of task {task.id}; it must return a list of one finite number per turn, of size up to "
                f"{LARGEST_REWARD:g}"
            )
        return values

    return checked


def _imported(path: str, arguments: Mapping[str, Any]) -> Any:
    found = import_path(path, "reward")
    reward = found(**arguments) if isinstance(found, type) else found
    if not callable(reward):
        raise ValueError(f"the reward {path!r} must be a function of (trajectory, task), or a class of such objects")
    return reward if isinstance(found, type) else partial(reward, **arguments)


def _matchtir(trajectory: Trajectory, task: Task, *, method: MatchMethod, unmatched_penalty: float) -> list[float]:
    calls = trajectory.calls_run()
    return turn_rewards(
        calls,
        task.reference.calls,
        trajectory.final_answer,
        task.reference.answer,
        # A call that was never run is no better than one that cannot be read.
        malformed=[len(turn.parsed) - len(run) for turn, run in zip(trajectory.turns, calls, strict=True)],
        method=method,
        unmatched_penalty=unmatched_penalty,
    )


def _outcome(trajectory: Trajectory, task: Task) -> list[float]:
    return outcome_reward(len(trajectory.turns), trajectory.final_answer, task.reference.answer)


def _environment(trajectory: Trajectory, task: Task) -> list[float]:
    """Give the environment's own ``reward()`` to the last turn; 0 where it failed, which is counted."""
    del task
    rewards = [0.0] * len(trajectory.turns)
    rewards[-1] = trajectory.environment_reward or 0.0
    return rewards


def _ftrl(trajectory: Trajectory, task: Task) -> list[float]:
    return ftrl_rewards(
        [_responded(turn) for turn in trajectory.turns],
        [turn.answer for turn in trajectory.turns],
        task.reference.sub_answers,
        task.reference.answer,
        malformed=[sum(entry.call is None for entry in turn.parsed) for turn in trajectory.turns],
    )


def _responded(turn: RolloutTurn) -> list[tuple[str, str | None]]:
    """Return tool name and response of a turn's readable calls; a cut-off rollout may hold calls never run."""
    responses = zip_longest(turn.parsed, turn.responses)
    return [(entry.call["name"], response) for entry, response in responses if entry is not None and entry.call]


def _toolrl(trajectory: Trajectory, task: Task, *, require_reasoning: bool = True) -> list[float]:
    """Score by ToolRL; a well-formed turn calls or answers, without malformed call, not cut off, and thinks first."""
    well_formed = [
        bool(turn.calls or turn.answer.strip())
        and all(entry.call is not None for entry in turn.parsed)
        and (bool(turn.reasoning.strip()) or not require_reasoning)
        for turn in trajectory.turns
    ]
    if trajectory.stop_reason in CUT_OFF and trajectory.turns and not trajectory.turns[-1].responses:
        well_formed[-1] = False
    return toolrl_rewards(trajectory.calls_run(), task.reference.calls, well_formed=well_formed)


REWARDS: dict[str, Callable[..., list[float]] | str] = {
    "matchtir": _matchtir,
    "outcome": _outcome,
    "environment": _environment,
    "ftrl": _ftrl,
    "toolrl": _toolrl,
    "bfcl": "pact_lightning.tasks.bfcl.score.bfcl_reward",
}
"""Rewards by name; a string is an import path, loaded on first use.

``matchtir``: calls by their match with the reference, the last turn by the answer [P]. ``outcome``: the answer alone
(GRPO). ``environment``: what the environment's own ``reward()`` gives. ``ftrl``: what each turn newly solves.
``toolrl``: format and calls, earned by the last turn. ``bfcl``: every user turn by BFCL's check."""

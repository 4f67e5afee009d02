"""Whether a teacher has solved its task (METHOD section 6)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pact_lightning.credit.rewards import extract_answer
from pact_lightning.metrics.answer import answers_match
from pact_lightning.metrics.solve import open_answers
from pact_lightning.tasks.schema import Task

SOLVED_REWARD = 1.0
"""What an environment's own ``reward()`` must reach."""


def can_be_verified(task: Task, environment: object) -> bool:
    """Whether anything says what solves the task: a reference answer, expected answers, or the environment's reward."""
    reference = task.reference
    has_reward = callable(getattr(environment, "reward", None))
    return reference.answer is not None or bool(reference.sub_answers) or has_reward


def is_verified(
    task: Task, final_answer: str | None, calls: Sequence[tuple[str, str]], environment_reward: float | None
) -> bool:
    """Whether a finished attempt solves its task.

    With a reference answer: the final answer **or** the last tool response is that answer [P]. Answers are compared by
    :func:`~pact_lightning.metrics.answer.answers_match`; a response is the answer if the whole text, or one of the
    values in its JSON, matches [D]: a reference of ``5`` is not found in a response of ``1500``. Without one: every
    expected answer is in a response of its own tool (FTRL's test); with neither, the environment's own reward is at
    least ``SOLVED_REWARD`` [D].

    Args:
        task: The task.
        final_answer: Text of the answer turn; ``None`` without one.
        calls: Tool name and response of every call, in order.
        environment_reward: What the environment's ``reward()`` gave, where it has one.
    """
    reference = task.reference
    if reference.answer is not None:
        if final_answer is not None and answers_match(extract_answer(final_answer), reference.answer):
            return True
        return bool(calls) and response_is_answer(calls[-1][1], reference.answer)
    if reference.sub_answers:
        return not open_answers(calls, reference.sub_answers)
    return environment_reward is not None and environment_reward >= SOLVED_REWARD


def response_is_answer(response: str, answer: str) -> bool:
    """Whether a tool response, or a value in its JSON, is the answer.

    >>> response_is_answer('{"population": {"1950": 1500}}', "1,500"), response_is_answer("1500", "5")
    (True, False)
    """
    if answers_match(response, answer):
        return True
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return False
    return any(answers_match(str(leaf), answer) for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]  # a list and not recursion: a response may be nested as deeply as it likes
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        elif inner is not None:
            yield inner

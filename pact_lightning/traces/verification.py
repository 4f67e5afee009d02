"""Whether a trace, or a teacher's attempt, has solved its task (METHOD section 6)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pact_lightning.credit.rewards import extract_answer
from pact_lightning.metrics.answer_match import answers_match
from pact_lightning.metrics.solve_scores import open_answers
from pact_lightning.tasks.schema import Reference, Task
from pact_lightning.traces.schema import ExpertTrace

SOLVED_REWARD = 1.0
"""What an environment's own ``reward()`` must reach."""
BY_ANSWER = "final answer verifies"
BY_RESPONSE = "last tool response verifies"
BY_SUB_ANSWERS = "sub-answers are all solved"
BY_REWARD = "environment's reward"


def can_be_verified(task: Task, environment: object) -> bool:
    """Whether anything says what solves the task: a reference answer, expected answers, or the environment's reward."""
    reference = task.reference
    has_reward = callable(getattr(environment, "reward", None))
    return reference.answer is not None or bool(reference.sub_answers) or has_reward


def verified_by(
    reference: Reference, final_answer: str | None, calls: Sequence[tuple[str, str]], environment_reward: float | None
) -> str | None:
    """By what a finished attempt or trace verifies; ``None`` where it does not.

    The paper keeps what ends in the right final answer **or** in a last tool response that verifies [P]. Answers are
    compared by :func:`~pact_lightning.metrics.answer_match.answers_match`; a response is the answer if the whole
    text, or one of the values in its JSON, matches [D]: a reference of ``5`` is not found in ``1500``. A task with
    expected answers is solved, too, by calls that find all of them in a response of their own tool (FTRL's test) [D].
    With neither, the environment's own reward is at least :data:`SOLVED_REWARD` [D].

    Args:
        reference: The task's reference.
        final_answer: Text of the answer turn; ``None`` without one.
        calls: Tool name and response of every call, in order.
        environment_reward: What the environment's ``reward()`` gave, where it has one.

    Returns:
        :data:`BY_ANSWER`, :data:`BY_RESPONSE`, :data:`BY_SUB_ANSWERS` or :data:`BY_REWARD`.
    """
    answer = (reference.answer or "").strip()
    if answer:
        if final_answer is not None and answers_match(extract_answer(final_answer), answer):
            return BY_ANSWER
        if calls and response_is_answer(calls[-1][1], answer):
            return BY_RESPONSE
    if reference.sub_answers:
        return None if open_answers(calls, reference.sub_answers) else BY_SUB_ANSWERS
    solved = not answer and environment_reward is not None and environment_reward >= SOLVED_REWARD
    return BY_REWARD if solved else None


def without_wrong_answer(trace: ExpertTrace, reference: Reference) -> ExpertTrace:
    """The trace without a final answer that is known to be wrong, such as supervised warm-up must not learn [D]."""
    answer = (reference.answer or "").strip()
    if not answer or trace.final is None or answers_match(extract_answer(trace.final.answer), answer):
        return trace
    return replace(trace, final=None)


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

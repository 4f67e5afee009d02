"""FTRL's rule: which expected answers calls solve, and the scores that follow."""

from collections.abc import Iterable, Sequence

from pact_lightning.credit.sub_answers import first_solved
from pact_lightning.tasks.schema import SubAnswer


def open_answers(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> list[SubAnswer]:
    """The expected answers that the calls leave unsolved [C].

    Calls are taken in order; each solves at most one answer that is still open, the first one of its own tool that is
    in its response.

    Args:
        calls: Tool name and response of each call.
        sub_answers: The expected answers.
    """
    still_open = list(sub_answers)
    for tool, response in calls:
        solved = first_solved(tool, response, [(sub_answer.tool, sub_answer.answer) for sub_answer in still_open])
        if solved is not None:
            del still_open[solved]
    return still_open


def count_solved(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> int:
    """How many expected answers the calls solve; see :func:`open_answers`."""
    return len(sub_answers) - len(open_answers(calls, sub_answers))


def solve_scores(expected: int, calls: int, solved: int) -> tuple[float, float, float]:
    """``(Solve-P, Solve-R, Solve-F1) = (q/p, q/n, 2q/(p+n))``; Solve-P is 1 without a call [C].

    Args:
        expected: ``n``, at least 1.
        calls: ``p``.
        solved: ``q``.

    Raises:
        ValueError: ``expected`` is below 1.

    >>> solve_scores(2, 3, 1)
    (0.3333333333333333, 0.5, 0.4)
    """
    if expected < 1:
        raise ValueError("a task without expected answers has no solve scores; leave it out")
    precision = solved / calls if calls else 1.0
    return precision, solved / expected, 2 * solved / (calls + expected)

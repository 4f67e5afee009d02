"""Matching of predicted with reference calls, and its scores (METHOD section 3, items 1 and 2)."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pact_lightning.types.tool_call import ToolCall

MatchMethod = Literal["hungarian", "greedy", "ot"]
"""``hungarian`` is optimal [P]; ``greedy`` takes the best free pair first [C]; ``ot`` shares credit by Sinkhorn [C]."""

# SciPy is imported where it is used: commands that only score answers start without it.
_Grid = npt.NDArray[np.float64]
_OT_REGULARISATION = 0.1
_OT_TOLERANCE = 1e-9
_ROUNDING = 1e-9


def match_calls(
    predicted: Sequence[ToolCall],
    reference: Sequence[ToolCall],
    *,
    method: MatchMethod = "hungarian",
    unmatched_penalty: float = 0.0,
) -> list[float]:
    """Score every predicted call of a rollout against the task's reference calls.

    ``hungarian`` and ``greedy`` match one-to-one, so at most ``len(reference)`` calls score at all, and at most as
    many calls of a name as the reference has. A pair of similarity 0 counts as unmatched. ``hungarian`` maximises the
    similarity itself; the penalty is applied afterwards. Of all matchings with the largest sum it takes the one in
    which the last call earns least, then the one before it, and so on [D]. So the earliest of equal calls has the best
    score, and a further call that leaves the largest sum as it is earns nothing and moves no credit. ``greedy`` makes
    no such promise: of equal pairs it takes the earliest call's first.

    ``ot`` has uniform marginals ``1/P`` and ``1/G`` for ``P`` predicted and ``G`` reference calls, and a call's score
    is ``sum_b T_ab S_ab`` [C]: at most ``1/P``, so a perfect rollout of ``P`` calls scores about 1 in total and not
    ``P``.

    Args:
        predicted: The rollout's well-formed calls, ``[P]``, all turns together and in order.
        reference: Calls that solve the task, ``[G]``; with none, every predicted call is unmatched.
        method: Assignment of credit, see :data:`MatchMethod`.
        unmatched_penalty: ``lambda_pen >= 0``; an unmatched call scores ``-lambda_pen`` [P].

    Returns:
        One score per predicted call, ``[P]``, in ``[-lambda_pen, 1]``.

    Raises:
        ValueError: Unknown ``method``, or a penalty that is negative or not finite.

    >>> add = {"name": "add", "arguments": {"a": 1, "b": 2}}
    >>> match_calls([add, add], [add])
    [1.0, 0.0]
    """
    if method not in get_args(MatchMethod):
        raise ValueError(f"unknown matching method {method!r}; use one of {', '.join(get_args(MatchMethod))}")
    check_penalty(unmatched_penalty)
    unmatched = 0.0 - unmatched_penalty  # not -0.0 where there is no penalty
    if not predicted or not reference:
        return [unmatched] * len(predicted)
    grid = np.array([[call_similarity(call, wanted) for wanted in reference] for call in predicted])
    scores = _SCORERS[method](grid)
    return [float(score) if score > 0.0 else unmatched for score in scores]


def call_similarity(predicted: ToolCall, reference: ToolCall) -> float:
    """Compute the similarity ``S_ab`` of a predicted and a reference call, in ``[0, 1]`` [C].

    0 if the names differ (case apart); else ``(1 + J + V) / (2 + n)`` with ``n`` reference arguments, ``J`` the
    Jaccard index of the argument names (1 when both calls have none) and ``V`` the number of reference arguments
    whose value is equal, see :func:`json_equal`. It is 1 exactly for a call with the reference's arguments.

    >>> call_similarity({"name": "Add", "arguments": {"a": 1, "b": 3}}, {"name": "add", "arguments": {"a": 1, "b": 2}})
    0.75
    """
    if predicted["name"].casefold() != reference["name"].casefold():
        return 0.0
    given, wanted = predicted["arguments"], reference["arguments"]
    # Names in a JSON object are unique, so their multiset Jaccard index is that of the sets.
    union = given.keys() | wanted.keys()
    jaccard = len(given.keys() & wanted.keys()) / len(union) if union else 1.0
    equal = sum(name in given and json_equal(given[name], value) for name, value in wanted.items())
    return (1.0 + jaccard + equal) / (2.0 + len(wanted))


def json_equal(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are equal.

    ``True`` is not ``1``, at any depth, and ``1`` equals ``1.0``, since JSON has a single number type [D]. The order of
    an object's members does not matter; strings are compared exactly.
    """
    # A stack and no recursion: the policy decides how deep its arguments are nested.
    pairs = [(left, right)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pairs.extend((value, b[key]) for key, value in a.items())
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
            if len(a) != len(b):
                return False
            pairs.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) != isinstance(b, bool) or a != b:
            return False
    return True


def check_penalty(unmatched_penalty: float) -> None:
    """Raise ``ValueError`` unless the penalty for an unmatched call is finite and not negative."""
    if not (math.isfinite(unmatched_penalty) and unmatched_penalty >= 0.0):
        raise ValueError(f"unmatched_penalty is subtracted, so it must be finite and >= 0, not {unmatched_penalty}")


def _hungarian_scores(grid: _Grid) -> _Grid:
    from scipy.optimize import linear_sum_assignment

    forbidden = -1.0 - grid.shape[1]  # costs more than all other calls can earn

    def solve(allowed: _Grid) -> _Grid:
        rows, columns = linear_sum_assignment(allowed, maximize=True)
        scores = np.zeros(len(grid))
        scores[rows] = allowed[rows, columns]
        return scores

    def only(call: int, score: float) -> _Grid:
        return np.where(grid[call] == score, score, forbidden) if score else np.zeros(grid.shape[1])

    scores = solve(grid)
    largest, allowed = scores.sum(), grid.copy()
    for call in reversed(range(len(grid))):
        # The least that this call can earn in a matching of the largest sum, given what later ones earn.
        lower = [0.0, *np.unique(grid[call])] if scores[call] else []
        for score in lower:
            if score >= scores[call]:
                break
            allowed[call] = only(call, score)
            found = solve(allowed)
            if found.sum() >= largest - _ROUNDING:
                scores = found
                break
        allowed[call] = only(call, scores[call])
    return scores


def _greedy_scores(grid: _Grid) -> _Grid:
    scores = np.zeros(len(grid))
    free_rows, free_columns = set(range(grid.shape[0])), set(range(grid.shape[1]))
    for flat in np.argsort(-grid, axis=None, kind="stable"):
        row, column = divmod(int(flat), grid.shape[1])
        if row in free_rows and column in free_columns:
            scores[row] = grid[row, column]
            free_rows.remove(row)
            free_columns.remove(column)
    return scores


def _transport_scores(grid: _Grid) -> _Grid:
    """Compute ``sum_b T_ab S_ab`` with ``T`` the entropic plan of cost ``-S``, the limit of Sinkhorn's iteration.

    Newton's method on the convex dual finds it: the iteration itself needs thousands of rounds near a perfect match.
    Rows hold ``1/P`` exactly, columns ``1/G`` to tolerance.
    """
    from scipy.optimize import minimize

    calls, wanted = grid.shape
    if wanted == 1:
        return np.asarray(grid[:, 0] / calls)

    def dual(free: _Grid) -> tuple[float, _Grid]:
        return _transport_dual(grid, free)[:2]

    def hessian(free: _Grid) -> _Grid:
        return _transport_dual(grid, free)[2]

    # A constant added to all column potentials changes nothing, so the last one stays 0.
    start = np.zeros(wanted - 1)
    found = minimize(dual, start, jac=True, hess=hessian, method="trust-exact", tol=_OT_TOLERANCE)
    return np.asarray((_transport_plan(grid, found.x)[0] * grid).sum(axis=1))


def _transport_plan(grid: _Grid, free: _Grid) -> tuple[_Grid, _Grid, _Grid]:
    """Return the plan ``[P, G]``, its log row sums before normalisation ``[P]``, and the column potentials ``[G]``."""
    from scipy.special import logsumexp

    potential = np.append(free, 0.0)
    weights = grid / _OT_REGULARISATION + potential
    log_rows = logsumexp(weights, axis=1)
    return np.exp(weights - log_rows[:, None]) / len(grid), log_rows, potential


def _transport_dual(grid: _Grid, free: _Grid) -> tuple[float, _Grid, _Grid]:
    """Return the dual's value, gradient (the columns' excess) and Hessian, over all but the last potential."""
    plan, log_rows, potential = _transport_plan(grid, free)
    columns = plan.sum(axis=0)
    gradient = columns - 1.0 / grid.shape[1]
    hessian = np.diag(columns) - len(grid) * plan.T @ plan
    return float(log_rows.mean() - potential.mean()), gradient[:-1], hessian[:-1, :-1]


_SCORERS = {"hungarian": _hungarian_scores, "greedy": _greedy_scores, "ot": _transport_scores}

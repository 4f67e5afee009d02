"""Advantages on two levels, from turn rewards (METHOD section 3, items 4 to 6)."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, get_args

import numpy as np

Fusion = Literal["sum", "mean", "trajectory"]
"""Fusion of both levels: ``sum`` is ``A^g + A^l`` [P], ``mean`` its half [C], ``trajectory`` is ``A^g`` alone."""


def dual_level_advantages(
    turn_rewards: Sequence[Sequence[float]], *, gamma: float = 0.9, eps: float = 1e-6, fusion: Fusion = "sum"
) -> list[list[float]]:
    """Compute the advantage of every turn of every rollout of a group; a turn's tokens share its value.

    Trajectory level: ``R_k = sum_t r_{k,t}``, normalised over the group. Turn level: the discounted return from turn
    ``t`` on, normalised over the rollouts that have a turn ``t``. To normalise is ``(v - mean) / (std + eps)`` with
    the unbiased standard deviation [C]. A single value cannot be normalised and stays raw: a turn index that only one
    rollout reaches [C], and both levels of a group of one rollout [D], which trains on its plain return.

    Args:
        turn_rewards: ``r_{k,t}``, ``K`` lists of any lengths. A rollout without turns counts with ``R_k = 0``.
        gamma: Discount of the turn level, in ``[0, 1]``.
        eps: Added to the standard deviation, ``> 0``.
        fusion: Fusion of the two levels, see :data:`Fusion`.

    Returns:
        ``K`` lists of the same lengths as ``turn_rewards``.

    Raises:
        ValueError: An empty group, a reward that is not finite, or an argument out of its range.

    >>> dual_level_advantages([[1.0], [1.0]])
    [[0.0], [0.0]]
    """
    if fusion not in get_args(Fusion):
        raise ValueError(f"unknown fusion {fusion!r}; use one of {', '.join(get_args(Fusion))}")
    if not 0.0 <= gamma <= 1.0 or not eps > 0.0:
        raise ValueError(f"advantages need 0 <= gamma <= 1 and eps > 0, not gamma={gamma}, eps={eps}")
    _check_rewards(turn_rewards)
    group = _normalise([math.fsum(rewards) for rewards in turn_rewards], eps)
    if fusion == "trajectory":
        return [[value] * len(rewards) for value, rewards in zip(group, turn_rewards, strict=True)]
    turns = _turn_level(turn_rewards, gamma, eps)
    scale = 0.5 if fusion == "mean" else 1.0
    return [[scale * (value + local) for local in locals_] for value, locals_ in zip(group, turns, strict=True)]


def is_zero_variance(rewards: Sequence[float], *, tolerance: float = 1e-9) -> bool:
    """Tell whether all rollouts of a group earned the same, so a comparison teaches nothing (METHOD 5.10).

    A group of one rollout keeps its raw return as its advantage (see :func:`dual_level_advantages`); it is never of
    zero variance in this sense [D].

    Args:
        rewards: One reward per rollout, before any shaping, ``[K]``.
        tolerance: Differences up to this size are rounding, since rewards are sums of fractions.

    Raises:
        ValueError: An empty group or a reward that is not finite.
    """
    _check_rewards([[reward] for reward in rewards])
    return len(rewards) > 1 and max(rewards) - min(rewards) <= tolerance


def _turn_level(turn_rewards: Sequence[Sequence[float]], gamma: float, eps: float) -> list[list[float]]:
    returns = [_discounted_returns(rewards, gamma) for rewards in turn_rewards]
    advantages: list[list[float]] = [[] for _ in returns]
    for turn in range(max(map(len, returns))):
        reached = [k for k, values in enumerate(returns) if len(values) > turn]
        for k, value in zip(reached, _normalise([returns[k][turn] for k in reached], eps), strict=True):
            advantages[k].append(value)
    return advantages


def _discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Compute ``R^l_t = sum_{u >= t} gamma^(u - t) r_u`` for every turn ``t``."""
    return list(accumulate(reversed(rewards), lambda later, reward: reward + gamma * later))[::-1]


def _normalise(values: Sequence[float], eps: float) -> list[float]:
    if len(values) == 1:
        return list(values)
    array = np.asarray(values, dtype=np.float64)
    return [float(value) for value in (array - array.mean()) / (array.std(ddof=1) + eps)]


def _check_rewards(turn_rewards: Sequence[Sequence[float]]) -> None:
    if not turn_rewards:
        raise ValueError("a group needs at least one rollout; it has none")
    for k, rewards in enumerate(turn_rewards):
        for t, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise ValueError(f"reward {t} of rollout {k} is {reward}; rewards must be finite numbers")

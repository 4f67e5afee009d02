"""Advantages on two levels, from turn rewards (METHOD section 3, items 4 to 6)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Literal, get_args

import numpy as np

Fusion = Literal["sum", "mean", "trajectory"]
"""Fusion of both levels: ``sum`` is ``A^g + A^l`` [P], ``mean`` its half [C], ``trajectory`` is ``A^g`` alone."""

Scale = Literal["std", "none"]
"""Divisor of what is left of a value without the mean: ``std`` plus ``eps`` [P], or ``none`` (Dr. GRPO)."""

LARGEST_REWARD = 1e30
"""Largest size of a reward: advantages are float32, and a turn that one rollout reaches keeps its raw return."""

_ROUNDING = 1e-13


def dual_level_advantages(
    turn_rewards: Sequence[Sequence[float]],
    *,
    gamma: float = 0.9,
    eps: float = 1e-6,
    fusion: Fusion = "sum",
    scale: Scale = "std",
) -> list[list[float]]:
    """Compute the advantage of every turn of every rollout of a group; a turn's tokens share its value.

    Trajectory level: ``R_k = sum_t r_{k,t}``, normalised over the group. Turn level: the discounted return from turn
    ``t`` on, normalised over the rollouts that have a turn ``t``. To normalise is ``(v - mean) / (std + eps)`` with
    the unbiased standard deviation [C]; values that differ by rounding alone give exactly 0 [D]. A single value cannot
    be normalised and stays raw: a turn index that only one rollout reaches [C]. So does a group of one rollout, which
    :func:`~pact_lightning.credit.group.make_group` leaves out.

    Args:
        turn_rewards: ``r_{k,t}``, ``K`` lists of any lengths. A rollout without turns counts with ``R_k = 0``.
        gamma: Discount of the turn level, in ``[0, 1]``.
        eps: Added to the standard deviation, ``> 0``.
        fusion: Fusion of the two levels, see :data:`Fusion`.
        scale: Divisor of both levels, see :data:`Scale`.

    Returns:
        ``K`` lists of the same lengths as ``turn_rewards``.

    Raises:
        ValueError: An empty group, a reward that is not finite, or an argument out of its range.

    >>> dual_level_advantages([[1.0], [1.0]])
    [[0.0], [0.0]]
    """
    if fusion not in get_args(Fusion):
        raise ValueError(f"unknown fusion {fusion!r}; use one of {', '.join(get_args(Fusion))}")
    if scale not in get_args(Scale):
        raise ValueError(f"unknown scale {scale!r}; use one of {', '.join(get_args(Scale))}")
    if not 0.0 <= gamma <= 1.0 or not eps > 0.0:
        raise ValueError(f"advantages need 0 <= gamma <= 1 and eps > 0, not gamma={gamma}, eps={eps}")
    _check_rewards(turn_rewards)
    normalise = partial(_normalise, eps=eps, scale=scale)
    group = normalise([math.fsum(rewards) for rewards in turn_rewards])
    if fusion == "trajectory":
        return [[value] * len(rewards) for value, rewards in zip(group, turn_rewards, strict=True)]
    turns = _turn_level(turn_rewards, gamma, normalise)
    factor = 0.5 if fusion == "mean" else 1.0
    return [[factor * (value + local) for local in locals_] for value, locals_ in zip(group, turns, strict=True)]


def is_zero_variance(advantages: Sequence[Sequence[float]]) -> bool:
    """Tell whether the advantages of a group are all 0, so that a comparison teaches nothing (METHOD 5.10).

    Equal sums of rewards are not enough: where two rollouts earn them in different turns, these turns differ.

    Args:
        advantages: Those of :func:`dual_level_advantages`, from rewards before any shaping.

    >>> is_zero_variance(dual_level_advantages([[1.0, 0.0], [0.0, 1.0]]))
    False
    """
    return not any(value for rollout in advantages for value in rollout)


def _turn_level(
    turn_rewards: Sequence[Sequence[float]], gamma: float, normalise: Callable[[Sequence[float]], list[float]]
) -> list[list[float]]:
    returns = [_discounted_returns(rewards, gamma) for rewards in turn_rewards]
    advantages: list[list[float]] = [[] for _ in returns]
    for turn in range(max(map(len, returns))):
        reached = [k for k, values in enumerate(returns) if len(values) > turn]
        for k, value in zip(reached, normalise([returns[k][turn] for k in reached]), strict=True):
            advantages[k].append(value)
    return advantages


def _discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Compute ``R^l_t = sum_{u >= t} gamma^(u - t) r_u`` for every turn ``t``."""
    return list(accumulate(reversed(rewards), lambda later, reward: reward + gamma * later))[::-1]


def _normalise(values: Sequence[float], *, eps: float, scale: Scale) -> list[float]:
    if len(values) == 1:
        return list(values)
    array = np.asarray(values, dtype=np.float64)
    if np.ptp(array) <= _ROUNDING * max(1.0, float(np.abs(array).max())):
        return [0.0] * len(values)  # sums of fractions, which eps would blow up
    divisor = array.std(ddof=1) + eps if scale == "std" else 1.0
    return [float(value) for value in (array - array.mean()) / divisor]


def _check_rewards(turn_rewards: Sequence[Sequence[float]]) -> None:
    if not turn_rewards:
        raise ValueError("a group needs at least one rollout; it has none")
    for k, rewards in enumerate(turn_rewards):
        for t, reward in enumerate(rewards):
            if not abs(reward) <= LARGEST_REWARD:
                raise ValueError(
                    f"reward {t} of rollout {k} is {reward}; rewards must be finite numbers of size up to "
                    f"{LARGEST_REWARD:g}"
                )

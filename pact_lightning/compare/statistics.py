"""Means and differences of scores with 95 % intervals, by a bootstrap over seeds and tasks.

Both seeds and tasks are draws, and all seeds share the tasks. So both are drawn anew, with replacement and apart from
each other: the score of a drawn seed at a drawn task counts as often as both were drawn (the pigeonhole bootstrap,
Owen, Annals of Applied Statistics 1(2), 2007) [D]. With one seed that is the usual bootstrap over tasks, with one task
the one over seeds.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pact_lightning.compare.results import TaskScores
from pact_lightning.utils.seeds import numpy_random

DRAWS = 4000
"""Draws of a bootstrap. The ends of an interval are off by about a fiftieth of its length."""
LEVEL = 0.95
_CHUNK = 500

Scores = Mapping[int, TaskScores]
"""Scores of a method by seed and task."""


class Interval(NamedTuple):
    """A mean with its interval.

    Attributes:
        mean: Mean over seeds and tasks.
        low: Lower end.
        high: Upper end.
        seeds: Number of seeds.
        tasks: Number of tasks.
    """

    mean: float
    low: float
    high: float
    seeds: int
    tasks: int


def mean_interval(scores: Scores, level: float = LEVEL) -> Interval:
    """Estimate the mean of a method's scores; neither the order of seeds nor that of tasks matters.

    Args:
        scores: Scores by seed and task. A seed may lack tasks.
        level: Share of draws within the interval.

    Raises:
        ValueError: There is no score.

    >>> mean_interval({0: {"a": 1.0, "b": 0.0}}).mean
    0.5
    """
    table = _table(scores)  # [S, T]
    known = ~np.isnan(table)
    if not known.any():
        raise ValueError("there are no scores to take the mean of")
    values = np.where(known, table, 0.0)
    means = _drawn_means(values, known)  # [B]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    seeds, tasks = table.shape
    return Interval(float(values.sum() / known.sum()), float(low), float(high), seeds, tasks)


def paired_difference(scores: Scores, against: Scores, level: float = LEVEL) -> Interval | None:
    """Estimate the mean difference from another method, over the seeds and tasks that both have.

    Args:
        scores: Scores of the method by seed and task.
        against: Those of the other one.
        level: Share of draws within the interval.

    Returns:
        The difference; ``None`` where they share nothing.

    >>> paired_difference({0: {"a": 1.0, "b": 0.5}}, {0: {"b": 0.0, "c": 1.0}})
    Interval(mean=0.5, low=0.5, high=0.5, seeds=1, tasks=1)
    """
    differences = {
        seed: {task: value - against[seed][task] for task, value in of.items() if task in against[seed]}
        for seed, of in scores.items()
        if seed in against
    }
    differences = {seed: of for seed, of in differences.items() if of}
    return mean_interval(differences, level) if differences else None


def _table(scores: Scores) -> npt.NDArray[np.float64]:
    """Lay scores out as ``[S, T]``, in the order of their names; NaN where there is none."""
    tasks = sorted(_names(scores.values()))
    return np.array([[scores[seed].get(task, np.nan) for task in tasks] for seed in sorted(scores)], dtype=np.float64)


def _names(rows: Iterable[TaskScores]) -> set[str]:
    return {task for row in rows for task in row}


def _drawn_means(values: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Compute the means of all draws, ``[B]``; a draw without a score is left out."""
    seeds, tasks = values.shape
    rng = numpy_random("bootstrap", seeds, tasks)
    means = []
    for _ in range(DRAWS // _CHUNK):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_CHUNK).astype(np.float64)  # [B, S]
        of_tasks = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=_CHUNK).astype(np.float64)  # [B, T]
        total = np.einsum("bs,bs->b", of_seeds, of_tasks @ values.T)
        count = np.einsum("bs,bs->b", of_seeds, of_tasks @ known.T.astype(np.float64))
        means.append(total[count > 0] / count[count > 0])
    return np.concatenate(means)

"""A run of the engine that can be interrupted: what is on disk is taken from there, what ends is written there.

A rollout that is reused leaves its place in the batch to others, and the size of a batch decides about the last bits of
its rows' probabilities. On a CPU, where a resumed run must repeat the uninterrupted one bit for bit, rollouts are
therefore made in parts that have nothing in common, and a part is reused as a whole or made again as a whole [D].
Elsewhere no two runs agree to the last bit anyway; there all rollouts are one part, and each finished one is reused.

A line of live progress for a run of rollouts, in the Trainer's own progress display.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from pact_lightning.rollout.engine import RolloutEngine, RolloutKey, RolloutRequest, RolloutStats
from pact_lightning.rollout.samplers.base import Sampler
from pact_lightning.rollout.store import StoredRollouts
from pact_lightning.types.trajectory import Trajectory

_ROWS_OF_A_PART = 4
"""How often a part fills the batch: at its end the batch runs empty, which costs time."""


def rollouts_of(requests: Sequence[RolloutRequest]) -> int:
    """Rollouts that are asked for."""
    return sum(request.samples for request in requests)


def parts_of(requests: Sequence[RolloutRequest], rows: int) -> Iterator[range]:
    """Cuts requests into parts, in order, that depend on the requests alone.

    Args:
        requests: All requests.
        rows: Rollouts in work at the same time.

    Yields:
        Numbers of the requests of a part.
    """
    start, samples = 0, 0
    for number, request in enumerate(requests):
        if number > start and samples + request.samples > _ROWS_OF_A_PART * rows:
            yield range(start, number)
            start, samples = number, 0
        samples += request.samples
    yield range(start, len(requests))


def reusable(
    known: Mapping[RolloutKey, Trajectory], parts: Sequence[range], requests: Sequence[RolloutRequest], *, exact: bool
) -> dict[RolloutKey, Trajectory]:
    """Which of the rollouts on disk are reused: all, or, where the run must be exact, those of whole parts."""
    if not exact:
        return dict(known)
    keys = [[(number, sample) for number in part for sample in range(requests[number].samples)] for part in parts]
    return {key: known[key] for part in keys if all(key in known for key in part) for key in part}


def run_rollouts(
    engine: RolloutEngine,
    requests: Sequence[RolloutRequest],
    sampler: Callable[[], AbstractContextManager[Sampler]],
    progress: Callable[[RolloutStats], None] | None,
    *,
    parts: Sequence[range],
    stored: StoredRollouts,
    reused: Mapping[RolloutKey, Trajectory],
    ended: Callable[[Trajectory], None],
    pause: Callable[[], None],
) -> tuple[list[list[Trajectory]], RolloutStats]:
    """Runs the rollouts that are not reused, part by part, each with a sampler of its own.

    Args:
        engine: The engine.
        requests: What to roll out.
        sampler: Lends the policy as a sampler.
        progress: Called whenever rollouts have ended.
        parts: Numbers of the requests of each part.
        stored: Takes every rollout that ends.
        reused: Rollouts that need not be run.
        ended: Called with every rollout that ends, once it is stored; it may raise in order to end the run.
        pause: Called between two steps of the sampler; it may raise in order to end the run.

    Returns:
        For every request its rollouts, and what all of them took.
    """
    results: list[list[Trajectory]] = []
    stats = RolloutStats()
    for part in parts:
        asked = [requests[number] for number in part]
        known = {
            (n, sample): trajectory
            for n, number in enumerate(part)
            for sample in range(requests[number].samples)
            if (trajectory := reused.get((number, sample))) is not None
        }
        if len(known) == rollouts_of(asked):
            results += [[known[n, sample] for sample in range(request.samples)] for n, request in enumerate(asked)]
            for trajectory in known.values():
                stats.add(trajectory)
            continue

        def keep(key: RolloutKey, trajectory: Trajectory, asked: list[RolloutRequest] = asked) -> None:
            stored.append(asked[key[0]], trajectory)
            ended(trajectory)

        with sampler() as policy:
            made, stats = engine.run(asked, policy, progress, known=known, finished=keep, pause=pause, stats=stats)
        results += made
    return results, stats


@contextmanager
def rollout_progress(
    trainer: pl.Trainer, what: str, requests: Sequence[RolloutRequest]
) -> Iterator[Callable[[RolloutStats], None] | None]:
    """Shows the line until it is left.

    Args:
        trainer: The Trainer.
        what: What is rolled out.
        requests: All of it.

    Yields:
        Takes what the run has made so far; ``None`` where nothing is displayed.
    """
    bar = trainer.progress_bar_callback
    display = bar.progress if isinstance(bar, RichProgressBar) and bar.is_enabled else None
    if display is None:
        yield None
        return
    line = display.add_task(f"rollouts: {what}", total=rollouts_of(requests))

    def show(stats: RolloutStats) -> None:
        speed = stats.tokens / max(stats.seconds, 1e-9)
        tools = stats.tool_seconds / max(stats.seconds, 1e-9)
        display.update(
            line,
            completed=stats.rollouts,
            description=f"rollouts: {what}, {speed:,.0f} tokens/s, {tools:.0%} in tools",
        )

    try:
        yield show
    finally:
        display.remove_task(line)

"""A line of live progress for a run of rollouts, in the Trainer's own progress display."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from pact_lightning.rollout.engine import RolloutRequest, RolloutStats
from pact_lightning.rollout_run import rollouts_of


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

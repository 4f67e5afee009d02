"""Live progress of a run of rollouts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from pact_lightning.rollout.engine import RolloutRequest, RolloutStats


@contextmanager
def rollout_progress(
    trainer: pl.Trainer, what: str, requests: Sequence[RolloutRequest]
) -> Iterator[Callable[[RolloutStats], None] | None]:
    """A line in the Trainer's own progress display: rollouts done and wanted, speed, share of time in tools.

    Args:
        trainer: The Trainer.
        what: What the rollouts are for.
        requests: What is to be rolled out.

    Yields:
        What shows the present figures; ``None`` where the Trainer shows no such display.
    """
    bar = trainer.progress_bar_callback
    display = bar.progress if isinstance(bar, RichProgressBar) and bar.is_enabled else None
    if display is None:
        yield None
        return
    line = display.add_task(f"rollouts: {what}", total=sum(request.samples for request in requests))

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

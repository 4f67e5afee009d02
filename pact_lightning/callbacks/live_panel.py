"""Live panel in the terminal: how far the phase is, how the policy does, and what it did last."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.text import Text

from pact_lightning.types.trajectory import RolloutTurn, Trajectory
from pact_lightning.utils.text import counted, visible

_SHOWN = 100
"""Characters of a line."""
_FIGURES = (
    ("val/answer_correct", "validation"),
    ("rollout/answer_correct", "rollouts"),
    ("rollout/malformed_call", "malformed calls"),
)


class LivePanel(RichProgressBar):
    """Lightning's rich progress bar, with a panel: phase, success, and the newest rollout in brief.

    The bar of the rollouts counts those done of those wanted, with tokens per second. Nothing is shown where the output
    is no terminal (a file, a pipe), or where the environment variable ``CI`` is set. As with every progress bar of
    Lightning, ``trainer.enable_progress_bar: false`` asks for the callback to be left out.

    Args:
        refresh_rate: Batches after which the bar is refreshed; 0 switches it off.
        leave: Whether the bar stays when it is done.
        console_kwargs: Arguments of rich's Console, such as ``stderr``.
    """

    def __init__(
        self, refresh_rate: int = 1, leave: bool = False, console_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave, console_kwargs=console_kwargs)
        self._console_arguments = console_kwargs or {}
        self._newest: Trajectory | None = None
        self._metrics: dict[str, Any] = {}
        self._paneled: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Switch off where nobody looks."""
        super().setup(trainer, pl_module, stage)
        console = Console(**self._console_arguments)
        if os.environ.get("CI") or not (console.is_terminal or console.is_jupyter):
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the panel under the bars."""
        super().on_train_start(trainer, pl_module)
        self._attach(trainer)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the panel under the bars."""
        super().on_sanity_check_start(trainer, pl_module)
        self._attach(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the figures of the phase."""
        super().on_train_epoch_end(trainer, pl_module)
        self._take_figures(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the figures of the validation."""
        super().on_validation_end(trainer, pl_module)
        self._take_figures(trainer)

    def _take_figures(self, trainer: pl.Trainer) -> None:
        # Here, in all processes, and not in the thread that draws: metrics are summed over processes when asked for.
        found = trainer.callback_metrics
        self._metrics = {name: float(found[name]) for name, _ in _FIGURES if name in found}

    def show_rollout(self, trajectory: Trajectory) -> None:
        """Take a rollout that has ended; see :class:`~pact_lightning.rollout.runner.ShowsRollouts`."""
        self._newest = trajectory

    def _attach(self, trainer: pl.Trainer) -> None:
        display: Any = self.progress
        if not self.is_enabled or display is None or display is self._paneled:
            return
        self._paneled, bars = display, display.get_renderables

        def with_panel() -> Iterable[RenderableType]:
            yield from bars()
            yield panel(trainer.current_epoch, trainer.max_epochs, self._metrics, self._newest)

        display.get_renderables = with_panel


def panel(phase: int, phases: int | None, metrics: Mapping[str, float], newest: Trajectory | None) -> Panel:
    """Make the panel.

    Args:
        phase: The phase, counted from 0.
        phases: Phases in all, if that is known.
        metrics: What has been logged last, by name.
        newest: The newest rollout.
    """
    of = f" of {phases}" if phases is not None and phases > 0 else ""
    shares = [f"{words} {metrics[name]:.0%}" for name, words in _FIGURES if name in metrics]
    lines = [Text(" · ".join([f"phase {phase + 1}{of}", *shares]), "bold")]
    if newest is not None:
        ended = f"{counted(len(newest.turns), 'turn')}, {counted(newest.tool_calls, 'call')}, {newest.stop_reason}"
        lines.append(Text(_line(f"{newest.task_id}: {ended}")))
        lines += [Text(_line(f"  {said}"), "dim") for turn in newest.turns[-2:] for said in _said(turn)]
    return Panel(Text("\n").join(lines), title="newest rollout" if newest else None, title_align="left")


def _said(turn: RolloutTurn) -> Iterable[str]:
    for number, entry in enumerate(turn.parsed[:2]):
        called = "malformed call" if entry.call is None else f"{entry.call['name']} {entry.call['arguments']}"
        yield f"{called} -> {turn.responses[number] if number < len(turn.responses) else '...'}"
    if turn.answer.strip():
        yield turn.answer


def _line(text: str) -> str:
    """Make one line of a text from outside."""
    plain = visible(" ".join(text[: 4 * _SHOWN].split())) if text.strip() else ""
    indent = text[: len(text) - len(text.lstrip())]
    return indent + (plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 3]}...")

"""Warns when a policy begins to collapse: no more calls, malformed calls, runaway control tokens, no more variety."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from pact_lightning.collapse import CollapseSigns, CollapseThresholds


class CollapseMonitor(pl.Callback):
    """Compares every phase's rollouts with those of the run's first phase, and warns once per sign (METHOD section 9).

    :class:`~pact_lightning.module.PACTModule` brings one along; list it among the callbacks to set other thresholds.

    Args:
        thresholds: When a sign counts.
        patience: Phases in a row that must show a sign before the warning, which names the first of them.
    """

    def __init__(self, thresholds: CollapseThresholds = CollapseThresholds(), patience: int = 2) -> None:  # noqa: B008
        if patience < 1:
            raise ValueError(f"CollapseMonitor's patience counts phases and must be at least 1, not {patience}")
        self.signs = CollapseSigns(thresholds, patience)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the phase's figures."""
        del pl_module
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        for warning in self.signs.update(trainer.current_epoch, figures):
            rank_zero_warn(warning)

    def state_dict(self) -> dict[str, Any]:
        """The first phase's figures and the signs so far, so that a resumed run goes on watching."""
        return self.signs.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of the run that is resumed."""
        self.signs.restore(state_dict)

"""Monitor of a policy's collapse: no calls, malformed calls, control tokens, entropy (METHOD section 9).

It reads the metrics of the rollouts alone and compares each phase with the run's first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn


@dataclass(frozen=True)
class CollapseThresholds:
    """Thresholds of the signs of a collapse, each relative to the run's first phase [D].

    Attributes:
        no_call: Share of rollouts without a tool call.
        malformed_call: Share of rollouts with a malformed call.
        share_rise: Least rise of either share since the first phase.
        control_tokens: Multiple of the first phase's share of control tokens; that share estimates their mean
            probability.
        entropy_fall: Fraction of the first phase's entropy below which the policy has lost its variety.
        entropy_rise: Multiple of the first phase's entropy above which the policy babbles.
    """

    no_call: float = 0.5
    malformed_call: float = 0.5
    share_rise: float = 0.25
    control_tokens: float = 2.0
    entropy_fall: float = 0.1
    entropy_rise: float = 3.0


@dataclass(frozen=True, slots=True)
class _Sign:
    figure: str
    shown: Callable[[CollapseThresholds, float, float], bool]  # now, at the start
    what: str


_SIGNS = {
    "no_call": _Sign(
        "rollout/no_call",
        lambda t, now, start: now >= t.no_call and now - start >= t.share_rise,
        "{now:.0%} of the rollouts call no tool ({start:.0%} in the first phase)",
    ),
    "malformed_call": _Sign(
        "rollout/malformed_call",
        lambda t, now, start: now >= t.malformed_call and now - start >= t.share_rise,
        "{now:.0%} of the rollouts hold a malformed call ({start:.0%} in the first phase)",
    ),
    "control_tokens": _Sign(
        "rollout/control_tokens",
        lambda t, now, start: now > t.control_tokens * start,
        "{now:.0%} of the sampled tokens are control tokens ({start:.0%} in the first phase)",
    ),
    "entropy_fall": _Sign(
        "rollout/entropy",
        lambda t, now, start: now < t.entropy_fall * start,
        "the entropy of the policy has fallen to {now:.3g} nats a token ({start:.3g} in the first phase)",
    ),
    "entropy_rise": _Sign(
        "rollout/entropy",
        lambda t, now, start: now > t.entropy_rise * start,
        "the entropy of the policy has risen to {now:.3g} nats a token ({start:.3g} in the first phase)",
    ),
}


class CollapseMonitor(pl.Callback):
    """Callback that compares every phase's rollouts with the first phase's and warns once per sign.

    :class:`~pact_lightning.PACTModule` adds one by itself; list it among the callbacks to set other thresholds.

    Args:
        thresholds: Thresholds of the signs.
        patience: Phases in a row that must show a sign before the warning, which names the first of them.

    Raises:
        ValueError: ``patience`` is below 1.
    """

    def __init__(self, thresholds: CollapseThresholds = CollapseThresholds(), patience: int = 2) -> None:
        if patience < 1:
            raise ValueError(f"CollapseMonitor's patience counts phases and must be at least 1, not {patience}")
        self.thresholds = thresholds
        self.patience = patience
        self._start: dict[str, float] = {}
        self._since: dict[str, int] = {}  # phase in which a sign that still shows began
        self._warned: list[str] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of the signs that the phase's metrics show."""
        del pl_module
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        for warning in self.warnings_of(trainer.current_epoch, figures):
            rank_zero_warn(warning)

    def warnings_of(self, phase: int, figures: Mapping[str, float]) -> list[str]:
        """Record a phase's metrics and return the warnings that are due.

        Args:
            phase: Number of the phase.
            figures: Values by metric name; a metric that is missing is not judged.
        """
        warnings = []
        for name, sign in _SIGNS.items():
            if sign.figure not in figures:
                continue
            now = figures[sign.figure]
            start = self._start.setdefault(sign.figure, now)
            if not sign.shown(self.thresholds, now, start):
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, phase)
            if name not in self._warned and phase - since + 1 >= self.patience:
                self._warned.append(name)
                warnings.append(
                    f"the policy may be collapsing: {sign.what.format(now=now, start=start)}; since phase "
                    f"{since} (now: phase {phase}). Look at the trajectories of these phases; resume from an earlier "
                    "checkpoint with a lower learning rate, or raise model.coefficients.kl"
                )
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """Return the first phase's metrics and the signs so far; a resumed run goes on watching."""
        return {"start": dict(self._start), "since": dict(self._since), "warned": list(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the run that is resumed."""
        self._start, self._since = dict(state_dict["start"]), dict(state_dict["since"])
        self._warned = list(state_dict["warned"])

"""Signs that a policy collapses, from the figures of its rollouts alone (METHOD section 9).

Warns when a policy begins to collapse: no more calls, malformed calls, runaway control tokens, no more variety.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn


@dataclass(frozen=True)
class CollapseThresholds:
    """When a figure is a sign of collapse; each is compared with the run's first phase [D].

    Attributes:
        no_call: Share of rollouts without a tool call.
        malformed_call: Share of rollouts with a malformed call.
        share_rise: How far both must have risen as well.
        control_tokens: How many times the first phase's share of control tokens; that share estimates their mean
            probability.
        entropy_fall: Share of the first phase's entropy below which the policy has lost its variety.
        entropy_rise: How many times the first phase's entropy the policy babbles at.
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


class CollapseSigns:
    """Follows the figures from phase to phase.

    Args:
        thresholds: When a figure is a sign.
        patience: Phases in a row that must show it.
    """

    def __init__(self, thresholds: CollapseThresholds, patience: int) -> None:
        self.thresholds = thresholds
        self.patience = patience
        self.start: dict[str, float] = {}
        self.since: dict[str, int] = {}  # phase in which a sign that still shows began
        self.warned: list[str] = []

    def update(self, phase: int, figures: Mapping[str, float]) -> list[str]:
        """Takes a phase's figures and gives the warnings that are due.

        Args:
            phase: Number of the phase.
            figures: Values by metric name; what is missing is not judged.
        """
        warnings = []
        for name, sign in _SIGNS.items():
            if sign.figure not in figures:
                continue
            now = figures[sign.figure]
            start = self.start.setdefault(sign.figure, now)
            if not sign.shown(self.thresholds, now, start):
                self.since.pop(name, None)
                continue
            since = self.since.setdefault(name, phase)
            if name not in self.warned and phase - since + 1 >= self.patience:
                self.warned.append(name)
                warnings.append(_warning(sign.what.format(now=now, start=start), since, phase))
        return warnings

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"start": dict(self.start), "since": dict(self.since), "warned": list(self.warned)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state` gave."""
        self.start, self.since = dict(state["start"]), dict(state["since"])
        self.warned = list(state["warned"])


def _warning(what: str, since: int, phase: int) -> str:
    return (
        f"the policy may be collapsing: {what}; it began in phase {since} and is so in phase {phase}. Look at the "
        "trajectories of these phases; go back to a checkpoint from before and lower the learning rate, or raise "
        "model.coefficients.kl"
    )


class CollapseMonitor(pl.Callback):
    """Compares every phase's rollouts with those of the run's first phase, and warns once per sign (METHOD section 9).

    :class:`~pact_lightning.PACTModule` brings one along; list it among the callbacks to set other thresholds.

    Args:
        thresholds: When a sign counts.
        patience: Phases in a row that must show a sign before the warning, which names the first of them.
    """

    def __init__(self, thresholds: CollapseThresholds = CollapseThresholds(), patience: int = 2) -> None:
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

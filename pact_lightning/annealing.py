"""How supervision by the expert trace fades: the schedule, and the callback that applies it (METHOD 2 and 5.2)."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

MAX_LEVEL = 4
"""L4, the longest safe prefix of the reasoning; L0 is none of it."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the SFT term teaches at one training step.

    Attributes:
        level: Level of the active reasoning prefix, 0 (none) to 4 (longest).
        tool_call_scale: ``lambda_a``, the weight of tool-call tokens, ``>= 0``.
    """

    level: int
    tool_call_scale: float

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a level outside 0 to 4 or a scale that is negative or not finite."""
        _check_level("level", self.level)
        _check_scale("tool_call_scale", self.tool_call_scale)


@dataclass(frozen=True, slots=True)
class AnnealingSchedule:
    """From a training step to :class:`Supervision`; pure.

    Attributes:
        scale_start: ``lambda_a`` at step 0 [P: 0.8].
        scale_end: ``lambda_a`` at the horizon and after it [P: 0.2].
        level_start: The level at step 0. Training passes through the levels from there to 0 in equal stages, five of
            them from L4 [D].
        anneal_reasoning: ``False`` holds the level at ``level_start`` (the ablation "reasoning fixed").
        anneal_tool_calls: ``False`` holds the scale at ``scale_start`` (the ablation "call scale fixed").
    """

    scale_start: float = 0.8
    scale_end: float = 0.2
    level_start: int = MAX_LEVEL
    anneal_reasoning: bool = True
    anneal_tool_calls: bool = True

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a level outside 0 to 4 or a scale that is negative or not finite."""
        _check_scale("scale_start", self.scale_start)
        _check_scale("scale_end", self.scale_end)
        _check_level("level_start", self.level_start)

    def at(self, step: int, horizon: int) -> Supervision:
        """Supervision at step ``s`` of horizon ``S``.

        ``level = max(0, L - floor((L + 1) s / S))`` with ``L = level_start``, in integers, so that no stage begins a
        step early or late; ``lambda_a = start - (start - end) min(s / S, 1)``.

        Args:
            step: ``s >= 0``; steps past the horizon are as the horizon.
            horizon: ``S >= 1``, in the unit of ``step``.

        Raises:
            ValueError: ``step`` or ``horizon`` is out of its range.

        >>> AnnealingSchedule().at(step=12, horizon=24)
        Supervision(level=2, tool_call_scale=0.5)
        """
        if step < 0 or horizon < 1:
            raise ValueError(f"annealing needs step >= 0 and horizon >= 1, not step={step}, horizon={horizon}")
        return Supervision(self._level(step, horizon), self._scale(step, horizon))

    def _level(self, step: int, horizon: int) -> int:
        if not self.anneal_reasoning:
            return self.level_start
        return max(0, self.level_start - (self.level_start + 1) * step // horizon)

    def _scale(self, step: int, horizon: int) -> float:
        if not self.anneal_tool_calls:
            return self.scale_start
        if step >= horizon:  # not by the formula, which would miss the end by rounding
            return self.scale_end
        return self.scale_start - (self.scale_start - self.scale_end) * (step / horizon)


@runtime_checkable
class Supervised(Protocol):
    """A module whose SFT term obeys a ``supervision`` attribute."""

    supervision: Supervision


class AnnealingCallback(Callback):
    """Sets the module's ``supervision`` at the start of every epoch and logs it.

    One epoch is one phase. The callback has no state: a resumed run finds its supervision from the epoch alone. A
    module trains without the callback too, under the supervision that it was made with.

    Logs ``anneal/level`` and ``anneal/tool_call_scale``.

    Args:
        scale_start: ``lambda_a`` in the first epoch.
        scale_end: ``lambda_a`` at the horizon. The last epoch is one step short of it.
        level_start: Reasoning level in the first epoch, 0 to 4.
        anneal_reasoning: Whether the level falls; else it stays at ``level_start``.
        anneal_tool_calls: Whether the scale changes; else it stays at ``scale_start``.
        horizon: Number of epochs over which supervision fades; by default the trainer's ``max_epochs``.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        *,
        scale_start: float = 0.8,
        scale_end: float = 0.2,
        level_start: int = MAX_LEVEL,
        anneal_reasoning: bool = True,
        anneal_tool_calls: bool = True,
        horizon: int | None = None,
    ) -> None:
        if horizon is not None and horizon < 1:
            raise ValueError(f"the annealing horizon is a number of epochs and must be >= 1, not {horizon}")
        self.schedule = AnnealingSchedule(
            scale_start=scale_start,
            scale_end=scale_end,
            level_start=level_start,
            anneal_reasoning=anneal_reasoning,
            anneal_tool_calls=anneal_tool_calls,
        )
        self.horizon = horizon

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the epoch's supervision in force.

        Raises:
            TypeError: The module has no ``supervision``.
            ValueError: There is neither a horizon nor a finite ``max_epochs``.
        """
        if not isinstance(pl_module, Supervised):
            raise TypeError(
                f"AnnealingCallback needs a module with a `supervision`; {type(pl_module).__name__} has none"
            )
        supervision = self.schedule.at(trainer.current_epoch, self._horizon(trainer))
        pl_module.supervision = supervision
        pl_module.log("anneal/level", float(supervision.level))
        pl_module.log("anneal/tool_call_scale", supervision.tool_call_scale)

    def _horizon(self, trainer: Trainer) -> int:
        horizon = trainer.max_epochs if self.horizon is None else self.horizon
        if horizon is None or horizon < 1:
            raise ValueError(f"annealing needs a horizon: set it, or a Trainer max_epochs >= 1 (it is {horizon})")
        return horizon


def _check_level(name: str, level: int) -> None:
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"{name} must be a level from 0 to {MAX_LEVEL}, not {level}")


def _check_scale(name: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, not {scale}")

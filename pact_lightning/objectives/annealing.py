"""Annealing schedule of the expert trace's supervision (METHOD sections 2 and 5.2).

At training step ``s`` of horizon ``S``, with level ``L`` at step 0::

    lambda_a(s) = lambda_start - (lambda_start - lambda_end) min(s / S, 1)
    level(s)    = max(0, L - floor((L + 1) s / S))
"""

import math
from dataclasses import dataclass

MAX_LEVEL = 4
"""L4, the longest safe prefix of the reasoning; L0 is the empty prefix."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """Supervision by the SFT term at one training step.

    Attributes:
        level: Level of the active reasoning prefix, 0 (none) to 4 (longest).
        tool_call_scale: ``lambda_a``, the weight of tool-call tokens, ``>= 0``.
    """

    level: int
    tool_call_scale: float

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: The level is outside 0 to 4, or the scale is negative or not finite.
        """
        _check_level("level", self.level)
        _check_scale("tool_call_scale", self.tool_call_scale)


@dataclass(frozen=True, slots=True)
class AnnealingSchedule:
    """Schedule from a training step to its :class:`Supervision`.

    Attributes:
        scale_start: ``lambda_a`` at step 0 [P: 0.8].
        scale_end: ``lambda_a`` at the horizon and after it [P: 0.2].
        level_start: The level at step 0. The levels from there to 0 are equal stages, five of them from L4 [D].
        anneal_reasoning: ``False`` holds the level at ``level_start`` (the ablation "reasoning fixed").
        anneal_tool_calls: ``False`` holds the scale at ``scale_start`` (the ablation "call scale fixed").
    """

    scale_start: float = 0.8
    scale_end: float = 0.2
    level_start: int = MAX_LEVEL
    anneal_reasoning: bool = True
    anneal_tool_calls: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: The level is outside 0 to 4, or a scale is negative or not finite.
        """
        _check_scale("scale_start", self.scale_start)
        _check_scale("scale_end", self.scale_end)
        _check_level("level_start", self.level_start)

    def at(self, step: int, horizon: int) -> Supervision:
        """Return the supervision at step ``s`` of horizon ``S``.

        The level is computed in integers: no stage begins a step early or late.

        Args:
            step: ``s >= 0``; steps past the horizon count as the horizon.
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
        if step >= horizon:  # the formula would miss the end by rounding
            return self.scale_end
        return self.scale_start - (self.scale_start - self.scale_end) * (step / horizon)


def _check_level(name: str, level: int) -> None:
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"{name} must be a level from 0 to {MAX_LEVEL}, not {level}")


def _check_scale(name: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, not {scale}")

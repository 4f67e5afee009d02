"""Supervision by feedback: its strength falls as the policy succeeds on the prompt alone (AdaPrefix, arXiv 2607.07674).

    strength <- clip( strength + rate (target - success), 0, 1 )                         after every phase

Success is thereby kept near the target: a policy that solves more gets less help, one that solves less gets more [D].
"""

import math
from dataclasses import dataclass

from pact_lightning.objectives.annealing import MAX_LEVEL, Supervision


@dataclass(frozen=True, slots=True)
class FeedbackSchedule:
    """Schedule from the success of a phase to the next one's :class:`Supervision`.

    Attributes:
        target: Success that is aimed at, in (0, 1).
        rate: Change of the strength by a unit of success, ``> 0``.
        scale_start: ``lambda_a`` at strength 1.
        scale_end: ``lambda_a`` at strength 0.
        level_start: The level at strength 1; in between it falls in equal stages.

    Raises:
        ValueError: A value is out of its range.
    """

    target: float = 0.5
    rate: float = 0.5
    scale_start: float = 0.8
    scale_end: float = 0.2
    level_start: int = MAX_LEVEL

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0 or not (math.isfinite(self.rate) and self.rate > 0.0):
            raise ValueError(f"feedback needs a target between 0 and 1 and a rate > 0, not {self.target}, {self.rate}")
        self.at(1.0)
        self.at(0.0)

    def after(self, strength: float, success: float) -> float:
        """Return the strength after a phase.

        Args:
            strength: Its strength, 0 to 1.
            success: Share of its rollouts that solved their task, 0 to 1.

        >>> FeedbackSchedule(rate=0.4).after(1.0, success=0.75)
        0.9
        """
        return min(max(strength + self.rate * (self.target - success), 0.0), 1.0)

    def at(self, strength: float) -> Supervision:
        """Return the supervision of a strength, 0 to 1."""
        level = min(int(strength * (self.level_start + 1)), self.level_start)
        return Supervision(level, self.scale_end + (self.scale_start - self.scale_end) * strength)

"""CHORD's mixture of imitation and reinforcement (arXiv 2508.11408): ``(1 - mu) L_RL + mu L_SFT``, and its schedule.

mu(s) = mu_start s / W                                                          s < W, the warm-up
mu(s) = mu_end + (mu_start - mu_end) (1 + cos(pi min((s - W) / S, 1))) / 2      after it
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MixtureSchedule:
    """Schedule from an optimiser step to ``mu``.

    Attributes:
        start: ``mu`` after the warm-up, 0 to 1 [C: 0.9].
        end: ``mu`` once it has decayed, 0 to 1 [C: 0.05].
        decay_steps: ``S``, optimiser steps of the decay [C: 200].
        warmup_steps: ``W``, optimiser steps of the warm-up.

    Raises:
        ValueError: A value is out of its range.
    """

    start: float = 0.9
    end: float = 0.05
    decay_steps: int = 200
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.end <= 1.0):
            raise ValueError(f"mu mixes two losses and must be between 0 and 1, not {self.start} or {self.end}")
        if self.decay_steps < 1 or self.warmup_steps < 0:
            raise ValueError(
                f"a schedule needs decay_steps >= 1 and warmup_steps >= 0, not {self.decay_steps} and "
                f"{self.warmup_steps}"
            )

    def at(self, step: int) -> float:
        """Return ``mu`` at an optimiser step, from 0 on.

        >>> [MixtureSchedule(0.9, 0.1, decay_steps=10).at(step) for step in (0, 5, 10, 99)]
        [0.9, 0.5, 0.1, 0.1]
        """
        if step < self.warmup_steps:
            return self.start * step / self.warmup_steps
        done = min((step - self.warmup_steps) / self.decay_steps, 1.0)
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0

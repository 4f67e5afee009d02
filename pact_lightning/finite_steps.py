"""Optimiser steps whose gradient is not finite: skipped, counted, and after too many in a row the end of the run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


class NonFiniteGradientError(RuntimeError):
    """So many steps in a row had to be skipped that the run cannot be expected to recover."""


@dataclass
class FiniteSteps:
    """Counts the steps that were skipped [D].

    Attributes:
        limit: Skipped steps in a row that end the run.
        skipped: Skipped steps of the run.
        in_a_row: Skipped steps since the last one that was taken.
    """

    limit: int
    skipped: int = 0
    in_a_row: int = 0

    def takes(self, norm: float) -> bool:
        """Whether the step is to be taken; counts it if not.

        Args:
            norm: Norm of the whole gradient.
        """
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached."""
        return self.in_a_row >= self.limit


def which_are_not_finite(gradients: Iterable[tuple[str, Tensor | None]]) -> str:
    """Names the weights behind a gradient that is not finite, for a message.

    Args:
        gradients: Every trained weight's name and gradient.
    """
    found = [(name, gradient) for name, gradient in gradients if gradient is not None]
    bad = [name for name, gradient in found if not bool(gradient.isfinite().all())]
    if not bad:
        return f"each of the {len(found)} gradients is finite, but their norm overflows"
    return f"{len(bad)} of {len(found)} gradients hold NaN or infinity, the first is that of {bad[0]}"

"""Aggregation: the mean that turns the losses of a group's tokens into the group's loss.

A group may be spread over several forwards. Each part gets its share, so that the parts add up to the group's loss.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pact_lightning.objectives.surrogate import check_group, group_mean

MeanOver = Literal["rollouts", "tokens", "constant"]
"""``rollouts``: over a rollout's tokens, then over the rollouts [C]; ``tokens``: over all tokens of the group, as DAPO
and CISPO; ``constant``: a rollout's sum by a constant length, then over the rollouts, as Dr. GRPO."""


@dataclass(frozen=True)
class AggregationConfig:
    """Mean over a group's tokens.

    Attributes:
        mean_over: ``rollouts`` [C], ``tokens`` or ``constant``, see :data:`MeanOver`.
        length: The constant length of ``constant``, in tokens; else ``null``.
    """

    mean_over: MeanOver = "rollouts"
    length: int | None = None

    def __post_init__(self) -> None:
        """Check that both fit together.

        Raises:
            ValueError: There is no such mean, or a length without ``constant``, or none or one below 1 with it.
        """
        if self.mean_over not in get_args(MeanOver):
            raise ValueError(
                f"model.aggregation.mean_over is {self.mean_over!r}; use one of {', '.join(get_args(MeanOver))}"
            )
        if (self.mean_over == "constant") != (self.length is not None) or (self.length is not None and self.length < 1):
            raise ValueError(
                f"model.aggregation.length is {self.length} with mean_over: {self.mean_over}; with `constant` give the "
                "tokens that a rollout's sum is divided by, at least 1, and leave it out otherwise"
            )


def aggregate(values: Tensor, mask: Tensor, aggregation: AggregationConfig, *, rollouts: int, tokens: int) -> Tensor:
    """Compute the share of a group's mean that some of its rollouts have.

    Values outside the mask are never read.

    Args:
        values: One value per token of these rollouts, ``[K, T]``.
        mask: Policy tokens, bool or 0/1, ``[K, T]``.
        aggregation: The mean.
        rollouts: Rollouts of the whole group, at least these ``K``.
        tokens: Policy tokens of the whole group.

    Returns:
        A scalar; the shares of all rollouts add up to the group's mean.

    Raises:
        ValueError: The shapes differ or are not ``[K, T]``, or the mask is empty for all these rollouts.
    """
    if aggregation.mean_over == "rollouts":
        return group_mean(values, mask) * (len(values) / rollouts)
    check_group(mask, values=values)
    total = values.masked_fill(mask == 0, 0.0).sum()  # []
    return total / (tokens if aggregation.length is None else aggregation.length * rollouts)

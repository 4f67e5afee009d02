"""Resampling: prompts whose rollouts all earned the same give way to further prompts of the task order [D].

Such a group has no advantage and no RL term (METHOD 5.10, 5.22); DAPO (arXiv 2503.14476, section 3.2) draws another
prompt in its place. Which prompts are drawn follows from the rollouts alone, so that a resumed run draws the same.
"""

from collections.abc import Sequence

from pact_lightning.credit.group import Group


def check_resampling(most: int | None, *, rollouts_per_prompt: int, processes: int) -> None:
    """Check that prompts can be replaced.

    Args:
        most: ``data.resample_zero_variance``.
        rollouts_per_prompt: K.
        processes: Number of processes that train together.

    Raises:
        ValueError: The bound allows nothing, a group has a single rollout, or several processes train.
    """
    if most is None:
        return
    if most < 2:
        raise ValueError(
            f"data.resample_zero_variance is {most}: it limits the prompts of a phase to this multiple of "
            "data.prompts_per_phase; set it to at least 2, or to null for no further prompts"
        )
    if rollouts_per_prompt < 2:
        raise ValueError(
            "data.resample_zero_variance needs groups that can tell rollouts apart, and data.rollouts_per_prompt is 1; "
            "set that to at least 2, or data.resample_zero_variance to null"
        )
    if processes > 1:
        raise ValueError(
            f"data.resample_zero_variance works with one process only, and this run has {processes}, each of which "
            "would need another number of further prompts; set trainer.devices and trainer.num_nodes to 1, or "
            "data.resample_zero_variance to null"
        )


def further_prompts(groups: Sequence[Group], wanted: int, most: int) -> int:
    """Count the prompts to roll out next: as many as still lack a group with variance, so that none is in vain.

    Args:
        groups: The groups of the phase so far.
        wanted: Groups that the phase trains on.
        most: Most groups that it may roll out.

    Returns:
        0 where enough groups have variance, or where the bound is reached.
    """
    return max(0, min(wanted - sum(map(_tells_apart, groups)), most - len(groups)))


def replace_groups(groups: Sequence[Group], wanted: int) -> None:
    """Mark the groups that others have replaced, so that ``wanted`` are left.

    Where the bound left too few groups with variance, the first ones without it stay: their traces are imitated.
    """
    without = [group for group in groups if not _tells_apart(group)]
    for group in without[len(without) - (len(groups) - wanted) :]:
        group.replaced = True


def _tells_apart(group: Group) -> bool:
    return not (group.zero_variance or group.single)

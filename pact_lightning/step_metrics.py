"""The figures of one optimiser step."""

from collections.abc import Mapping, Sequence

from pact_lightning.group import Group
from pact_lightning.scoring import PromptPlan


def step_metrics(batch: Sequence[Group], plans: Sequence[PromptPlan], sums: Mapping[str, float]) -> dict[str, float]:
    """Means: losses over the prompts that have the term, shares over all prompts of the step.

    Args:
        batch: The groups of the step.
        plans: How each of them was scored.
        sums: What the packs added up; names that none of them added are 0 (a ``defaultdict``).
    """
    with_rl, with_sft = max(sums["rl_prompts"], 1e-9), max(sums["sft_prompts"], 1e-9)
    metrics = {
        "train/loss": sums["loss"],
        "train/gradient_norm": sums["gradient_norm"],
        "train/rl_loss": sums["rl_loss"] / with_rl,
        "train/sft_loss": sums["sft_loss"] / with_sft,
        "train/kl": sums["kl_loss"] / with_rl,
        "train/entropy": -sums["entropy_loss"] / with_rl,
        "train/anchored": sum(plan.context is None for plan in plans) / len(plans),
        "train/zero_variance": sum(group.zero_variance for group in batch) / len(batch),
        "train/sft_skipped": sums["sft_skipped"],
    }
    for reason in ("drawn", "no_trace", "overlong"):
        metrics[f"anchor/{reason}"] = sum(group.anchored == reason for group in batch) / len(batch)
    dropped = [plan.context.dropped_turns > 0 for plan in plans if plan.context is not None]
    metrics["anchor/trace_shortened"] = sum(dropped) / len(batch)
    metrics |= {
        f"train/{name.removeprefix('surrogate/')}": value / with_rl
        for name, value in sums.items()
        if name.startswith("surrogate/")
    }
    return metrics

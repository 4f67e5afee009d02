"""The figures of one optimiser step."""

from collections.abc import Mapping, Sequence
from typing import get_args

from pact_lightning.credit.group import AnchorReason, Group
from pact_lightning.objectives.surrogate import FIGURES
from pact_lightning.update.layout import PromptPlan

_ANCHOR_REASONS: tuple[AnchorReason, ...] = get_args(AnchorReason)


def step_counts(batch: Sequence[Group], plans: Sequence[PromptPlan]) -> dict[str, float]:
    """What is counted of a batch; counts of several processes add up.

    Args:
        batch: The groups of the step.
        plans: How each of them was scored.
    """
    counts: dict[str, float] = {
        "prompts": len(batch),
        "anchored": sum(plan.context is None for plan in plans),
        "zero_variance": sum(group.zero_variance for group in batch),
        "trace_shortened": sum(plan.context is not None and plan.context.dropped_turns > 0 for plan in plans),
    }
    return counts | {reason: sum(group.anchored == reason for group in batch) for reason in _ANCHOR_REASONS}


def step_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means: losses over the prompts that have the term, shares over all prompts of the step.

    The names are the same in every step, since Lightning repeats the value of a name that a step leaves out. What no
    prompt of the step has is 0.

    Args:
        sums: What the packs added up, and :func:`step_counts`, over all processes; names that nothing added to are 0
            (a ``defaultdict``).
    """
    with_rl, with_sft, prompts = max(sums["rl_prompts"], 1e-9), max(sums["sft_prompts"], 1e-9), sums["prompts"]
    metrics = {
        "train/loss": sums["loss"],
        "train/gradient_norm": sums["gradient_norm"],
        "train/rl_loss": sums["rl_loss"] / with_rl,
        "train/sft_loss": sums["sft_loss"] / with_sft,
        "train/kl": sums["kl_loss"] / with_rl,
        "train/entropy": -sums["entropy_loss"] / with_rl,
        "train/anchored": sums["anchored"] / prompts,
        "train/zero_variance": sums["zero_variance"] / prompts,
        "train/sft_skipped": sums["sft_skipped"],
    }
    metrics |= {f"anchor/{name}": sums[name] / prompts for name in (*_ANCHOR_REASONS, "trace_shortened")}
    return metrics | {f"train/{name}": sums[f"surrogate/{name}"] / with_rl for name in FIGURES}

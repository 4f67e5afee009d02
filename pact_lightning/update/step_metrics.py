"""Figures of one optimiser step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

from pact_lightning.credit.group import AnchorReason, Group
from pact_lightning.objectives.surrogate import FIGURES
from pact_lightning.update.layout import ScoringJob

_ANCHOR_REASONS: tuple[AnchorReason, ...] = get_args(AnchorReason)
_TOKEN_MEANS = tuple(name for name in FIGURES if name != "ratio_max")

MAXIMA = ("surrogate/ratio_max",)
"""Names of the sums of a step that are no sums, but the largest value of its packs and processes."""


def step_counts(batch: Sequence[Group], jobs: Sequence[ScoringJob]) -> dict[str, float]:
    """Count the prompts of a batch by kind; counts of several processes add up.

    Args:
        batch: The groups of the step.
        jobs: Their scoring.
    """
    leading = [job for job in jobs if job.part == 0]
    counts: dict[str, float] = {
        "prompts": len(batch),
        "anchored": sum(group.anchored is not None for group in batch),
        "zero_variance": sum(group.zero_variance for group in batch),
        "single_rollout": sum(group.single for group in batch),
        "trace_shortened": sum(job.context is not None and job.context.dropped_turns > 0 for job in leading),
    }
    return counts | {reason: sum(group.anchored == reason for group in batch) for reason in _ANCHOR_REASONS}


def step_metric_names() -> frozenset[str]:
    """Return the names of :func:`step_metrics`, but for an objective's own figures."""
    return frozenset(step_metrics(defaultdict(float, prompts=1.0)))


def step_metrics(sums: Mapping[str, float], figures: Sequence[str] = ()) -> dict[str, float]:
    """Average losses over the prompts that have the term, counts over all prompts, and figures of tokens over tokens.

    All are those of one forward over the whole step, however it was packed and shared.

    The names are the same in every step, since Lightning repeats the value of a name that a step leaves out. A term
    that no prompt of the step has is 0.

    Args:
        sums: Sums of the packs, and :func:`step_counts`, over all processes (a ``defaultdict`` of 0); of
            :data:`MAXIMA` the largest.
        figures: Names of the objective's own figures.
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
        "train/single_rollout": sums["single_rollout"] / prompts,
        "train/sft_skipped": sums["sft_skipped"],
    }
    metrics |= {f"anchor/{name}": sums[name] / prompts for name in (*_ANCHOR_REASONS, "trace_shortened")}
    metrics["train/ratio_max"] = sums["surrogate/ratio_max"]
    tokens = max(sums["rl_tokens"], 1)
    return metrics | {f"train/{name}": sums[f"surrogate/{name}"] / tokens for name in (*_TOKEN_MEANS, *figures)}

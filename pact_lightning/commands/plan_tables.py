"""What ``pact-lightning plan`` shows, as tables."""

from collections.abc import Collection, Mapping

from rich.table import Table

from pact_lightning.plan.duration import Speed
from pact_lightning.plan.fitting import USABLE, Fit
from pact_lightning.plan.run_plan import RunPlan

_GIB = 2**30
_UNITS = {"GiB": _GIB, "MiB": 2**20}
_TERA = 10**12


def memory_table(plan: RunPlan) -> Table:
    """What is in memory, part by part, at the fullest moment of rollouts and of an update."""
    memory = plan.memory
    standing, rollout = memory.standing, memory.rollout
    unit = "GiB" if memory.peak >= _GIB else "MiB"

    def size(value: float) -> str:
        return f"{value / _UNITS[unit]:,.2f}" if value else "-"

    table = Table(title=f"Memory of one {plan.recipe.device_type} process, {unit}")
    table.add_column("")
    table.add_column("rollouts", justify="right")
    table.add_column("update", justify="right")
    gradients = standing.gradients if memory.gradients_exist else 0
    rows: dict[str, tuple[int, int]] = {
        "weights": (standing.weights, standing.weights),
        "adapter": (standing.adapter, standing.adapter),
        "frozen reference": (standing.reference, standing.reference),
        "optimiser": (standing.optimizer, standing.optimizer),
        "a 4-bit layer, dequantised": (standing.dequantised, standing.dequantised),
        "gradients of earlier packs": (0, gradients),
        f"saved for backward, {plan.pack_tokens:,} tokens": (0, memory.saved),
        f"working memory, head chunks of {plan.recipe.head_chunk:,} included": (0, memory.working),
        f"keys and values, {plan.decoding.rows:,} rows": (rollout.cache, 0),
        "prefill, drawing, growing cache": (rollout.peak - rollout.cache, 0),
    }
    for name, (in_rollouts, in_update) in rows.items():
        if in_rollouts or in_update:
            table.add_row(name, size(in_rollouts), size(in_update))
    table.add_section()
    notes = []
    if memory.offloaded:
        notes.append(f"{size(memory.kept)} {unit} more in the host's memory, saved for the backward pass.")
    if plan.recipe.sampler:
        notes.append(f"Rollouts come from {plan.recipe.sampler}, whose memory is not planned.")
    table.caption = " ".join(notes)
    table.add_row("peak", size(memory.in_rollouts), size(memory.in_update), style="bold")
    return table


def work_table(plan: RunPlan, seconds: Mapping[str, float], speed: Speed) -> Table:
    """What a phase computes, and how long that takes."""
    title = (
        f"One phase: {plan.recipe.prompts_per_phase:,} prompts x {plan.recipe.rollouts_per_prompt} rollouts, "
        f"{plan.steps} optimiser steps of {plan.packs} packs"
    )
    table = Table(title=title)
    table.add_column("pass")
    for name in ("forwards", "tokens", "TFLOP", "seconds, at least"):
        table.add_column(name, justify="right")
    for one in plan.passes:
        forwards = f"{one.forwards:,}" if one.forwards else "-"
        table.add_row(one.name, forwards, f"{one.tokens:,}", f"{one.flops / _TERA:,.2f}", f"{seconds[one.name]:,.1f}")
    table.add_section()
    flops = sum(one.flops for one in plan.passes)
    table.add_row("phase", "", "", f"{flops / _TERA:,.2f}", f"{sum(seconds.values()):,.1f}", style="bold")
    caption = (
        f"An estimate for {speed.flops / _TERA:,.3g} TFLOP/s and {speed.bandwidth / 10**9:,.3g} GB/s ({speed.source}), "
        "without tools, validation and waiting, for rollouts of these lengths; real runs reach a part of that speed."
    )
    if plan.recipe.sampler:
        caption += " Prefill and decode as if the policy sampled itself on that device."
    table.caption = caption
    table.caption_justify = "left"
    return table


def lengths_line(plan: RunPlan, given: Collection[str]) -> str:
    """What the tables are about.

    Args:
        plan: The plan.
        given: Which lengths were given; the others are the recipe's limits.
    """
    lengths = plan.lengths
    source = "the recipe's limits, and yours are shorter: say how long by --prompt, --trace, --trajectory"
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        source = f"{names} as given, the rest at the recipe's limits"
    trace = f"trace {lengths.trace:,}" if plan.recipe.uses_traces else "no trace"
    return (
        f"Per prompt {lengths.prompt:,} tokens, {trace}, rollout {lengths.trajectory:,} of which the "
        f"policy samples {lengths.sampled:,} ({source})."
    )


def fit_lines(plan: RunPlan, fit: Fit, card: int) -> list[str]:
    """What fits a card, and what to do where nothing does."""
    peak = plan.memory.peak
    verdict = "fits" if peak <= card * USABLE else "does not fit"
    lines = [
        f"The recipe as it is needs {_gib(peak)} GiB and {verdict} {_gib(card)} GiB, of which {USABLE:.0%} are planned "
        "with; one setting at a time, the others as they are:"
    ]
    if fit.max_tokens_per_forward is None:
        advice = "" if plan.recipe.policy.gradient_checkpointing else " model.init_args.policy.gradient_checkpointing,"
        lines.append(
            f"  max_tokens_per_forward: not even one rollout behind its prompt and trace fits; try{advice} another "
            "adapter, a smaller head_chunk or shorter trajectories"
        )
    else:
        lines.append(f"  max_tokens_per_forward: up to {fit.max_tokens_per_forward:,}")
    if plan.recipe.sampler:
        lines.append("  limits.rows: the sampler's memory decides, which is not planned")
    elif fit.rows is None:
        lines.append("  limits.rows: not even one row fits; try qlora, shorter trajectories or fewer prefill_tokens")
    else:
        lines.append(f"  limits.rows: up to {fit.rows:,}")
    return lines


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f}" if size else "-"

"""What ``pact-lightning plan`` shows, as tables."""

from collections.abc import Mapping

from rich.table import Table

from pact_lightning.plan.duration import Speed
from pact_lightning.plan.fitting import USABLE, Fit
from pact_lightning.plan.run_plan import RunPlan

_GIB = 2**30
_TERA = 10**12


def memory_table(plan: RunPlan) -> Table:
    """What is in memory, part by part, at the fullest moment of rollouts and of an update."""
    memory = plan.memory
    standing, rollout = memory.standing, memory.rollout
    table = Table(title=f"Memory of one {plan.recipe.device_type} process, GiB")
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
            table.add_row(name, _gib(in_rollouts), _gib(in_update))
    table.add_section()
    notes = []
    if memory.offloaded:
        notes.append(f"{_gib(memory.kept)} GiB more in the host's memory, saved for the backward pass.")
    if plan.recipe.sampler:
        notes.append(f"Rollouts come from {plan.recipe.sampler}, whose own memory is not planned.")
    table.caption = " ".join(notes)
    table.add_row("peak", _gib(memory.in_rollouts), _gib(memory.in_update), style="bold")
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
    table.caption = (
        f"An estimate for {speed.flops / _TERA:,.3g} TFLOP/s and {speed.bandwidth / 10**9:,.3g} GB/s ({speed.source}), "
        "without tools, validation and waiting; real runs reach a part of that."
    )
    table.caption_justify = "left"
    return table


def lengths_line(plan: RunPlan, *, at_limits: bool) -> str:
    """What the tables are about."""
    lengths = plan.lengths
    source = "the recipe's limits; say how long yours are by --prompt, --trace, --trajectory" if at_limits else "given"
    return (
        f"Per prompt {lengths.prompt:,} tokens, trace {lengths.trace:,}, rollout {lengths.trajectory:,} of which the "
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
    if fit.rows is None:
        lines.append("  limits.rows: not even one row fits; try qlora, shorter trajectories or fewer prefill_tokens")
    else:
        lines.append(f"  limits.rows: up to {fit.rows:,}")
    return lines


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f}" if size else "-"

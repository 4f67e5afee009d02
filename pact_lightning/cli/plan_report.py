"""Report of ``pact-lightning plan``: tables of memory and work, and the settings that fit a card."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pact_lightning.cli.fit import silence_libraries
from pact_lightning.cli.plan_recipe import read_recipe
from pact_lightning.plan.colocated import EngineBytes
from pact_lightning.plan.duration import Speed, phase_seconds, probe_speed
from pact_lightning.plan.fitting import USABLE, Fit, largest_fit
from pact_lightning.plan.lengths import Lengths
from pact_lightning.plan.memory import idle_expert_bytes, row_cache_bytes
from pact_lightning.plan.recipe import Recipe
from pact_lightning.plan.run_plan import RunPlan, make_plan
from pact_lightning.policy.loading import policy_skeleton
from pact_lightning.utils.text import counted

_GIB = 2**30
_UNITS = {"GiB": _GIB, "MiB": 2**20}
_GIGA, _TERA = 10**9, 10**12


def print_plan(own: argparse.Namespace, card: int | None, of_fit: Sequence[str]) -> None:
    """Print what a run will need and how long it will take.

    Args:
        own: The command's own options.
        card: Bytes of the card that is to hold the run, if one is named.
        of_fit: The other arguments, those of ``fit``.

    Raises:
        ValueError: A length makes no sense, or the recipe cannot be planned.
    """
    silence_libraries()
    recipe = read_recipe(of_fit, own.device)
    given = {name: getattr(own, name) for name in ("prompt", "shared", "trace", "trajectory", "sampled_share")}
    given = {name: value for name, value in given.items() if value is not None}
    lengths = _lengths(recipe, given)
    console = Console()
    with console.status("planning"):
        skeleton = policy_skeleton(recipe.policy)
        plan = make_plan(recipe, skeleton, lengths, card)
        speed = _speed(own, recipe, skeleton)
        seconds = _seconds(plan, speed, skeleton)
        fit = None if card is None else largest_fit(recipe, skeleton, lengths, plan.memory, card)
    console.print(_lengths_line(plan, given), soft_wrap=True)
    console.print(_memory_table(plan))
    console.print(_work_table(plan, seconds, speed))
    if recipe.phases is not None:
        console.print(_hours_line(plan, seconds), soft_wrap=True)
    given_speed = own.tflops is not None and own.bandwidth is not None
    if recipe.device_type == "cuda" and not given_speed and not torch.cuda.is_available():
        console.print(
            "There is no CUDA device here, so these seconds are for this machine's CPU; give the card's speed with "
            "--tflops and --bandwidth.",
            soft_wrap=True,
        )
    if fit is not None and card is not None:
        for line in _fit_lines(plan, fit, card):
            console.print(line, soft_wrap=True, highlight=False)


def _lengths(recipe: Recipe, given: dict[str, Any]) -> Lengths:
    """Return the lengths to plan with: those given, the recipe's limits for the others."""
    changes = {"prompt": "max_prompt_tokens", "trajectory": "max_trajectory_tokens"}
    for name, limit in changes.items():
        if name in given and given[name] > getattr(recipe, limit):
            raise ValueError(
                f"--{name} {given[name]} is above the recipe's {limit}, {getattr(recipe, limit)}; raise that too"
            )
    if not recipe.uses_traces:
        given.pop("trace", None)
    shorter = replace(recipe, **{changes[name]: given[name] for name in changes if name in given})
    lengths = replace(shorter.longest(), **given)
    needed = lengths.prompt + lengths.trace + lengths.trajectory
    if lengths.trace and recipe.max_context_tokens is not None and needed > recipe.max_context_tokens:
        raise ValueError(
            f"a context of these lengths takes {needed} tokens, over model.max_context_tokens = "
            f"{recipe.max_context_tokens}: fit would leave out reasoning of the trace; plan with a shorter --trace"
        )
    return lengths


def _speed(own: argparse.Namespace, recipe: Recipe, skeleton: nn.Module) -> Speed:
    """Return the speed to plan with; what is not given is measured."""
    if own.tflops is not None and own.bandwidth is not None:
        return Speed(own.tflops * _TERA, own.bandwidth * _GIGA, "given")
    device = torch.device("cuda" if recipe.device_type == "cuda" and torch.cuda.is_available() else "cpu")
    source: Any = skeleton
    measured = probe_speed(device, source.get_input_embeddings().weight.dtype)
    flops = measured.flops if own.tflops is None else own.tflops * _TERA
    bandwidth = measured.bandwidth if own.bandwidth is None else own.bandwidth * _GIGA
    part = "" if own.tflops is None and own.bandwidth is None else "in part given, in part "
    return Speed(flops, bandwidth, part + measured.source)


def _seconds(plan: RunPlan, speed: Speed, skeleton: nn.Module) -> dict[str, float]:
    standing, adapter = plan.memory.standing, plan.recipe.policy.adapter
    idle = idle_expert_bytes(skeleton, adapter, plan.decoding.rows)
    return phase_seconds(
        plan.passes,
        plan.decoding,
        speed,
        weight_bytes=standing.weights + standing.adapter - idle,
        cached_bytes=row_cache_bytes(skeleton, plan.decoding.cached, plan.recipe.device_type),
    )


def _memory_table(plan: RunPlan) -> Table:
    """Tabulate the memory, part by part, at the fullest moment of rollouts and of an update."""
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
    if memory.engine is not None:
        engine, cache = memory.engine, max(0, memory.engine.awake - memory.engine.weights)
        awake = not engine.sleeps
        of_rows = f", {engine.rows:,} rows" if engine.share is None else ", the rest of its share"
        rows["weights in vLLM"] = (engine.weights, engine.weights * awake)
        rows[f"keys and values in vLLM{of_rows}"] = (cache, cache * awake)
    for name, (in_rollouts, in_update) in rows.items():
        if in_rollouts or in_update:
            table.add_row(name, size(in_rollouts), size(in_update))
    table.add_section()
    notes = []
    if memory.offloaded:
        notes.append(f"{size(memory.kept)} {unit} more in the host's memory, saved for the backward pass.")
    if memory.engine is not None:
        notes.append(_engine_note(plan, memory.engine, f"{size(memory.engine.weights)} {unit}"))
    elif plan.recipe.sampler:
        notes.append(f"Rollouts come from {plan.recipe.sampler}; plan does not estimate its memory.")
    table.caption = " ".join(notes)
    table.add_row("peak", size(memory.in_rollouts), size(memory.in_update), style="bold")
    return table


def _engine_note(plan: RunPlan, engine: EngineBytes, weights: str) -> str:
    """Tell what a vLLM engine in the same process does with its memory."""
    share = f"{plan.recipe.engine.share:.0%} of the card" if plan.recipe.engine else ""
    taken = f"vLLM takes {share} (gpu_memory_utilization)"
    if engine.share is None:
        taken = f"vLLM takes {share} (gpu_memory_utilization), not what is shown; name the card with --memory"
    asleep = f"in an update it sleeps, with its {weights} of weights in the host's memory"
    return f"{taken}; {asleep if engine.sleeps else 'it stays awake in an update'}."


def _work_table(plan: RunPlan, seconds: Mapping[str, float], speed: Speed) -> Table:
    """Tabulate the passes of a phase, with operations and seconds."""
    title = (
        f"One phase: {plan.recipe.prompts_per_phase:,} prompts x {plan.recipe.rollouts_per_prompt} rollouts, "
        f"{counted(plan.recipe.steps, 'optimiser step')} of {counted(plan.packs, 'pack')}"
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
        f"An estimate for {speed.flops / _TERA:,.3g} TFLOP/s and {speed.bandwidth / _GIGA:,.3g} GB/s ({speed.source}), "
        "without tools, validation and waiting, for rollouts of these lengths; real runs reach a part of that speed."
    )
    if plan.recipe.sampler:
        caption += " Prefill and decode as if the policy sampled itself on that device."
    if plan.recipe.most_draws > 1:
        caption += (
            f" Prefill and decode without further prompts; with data.resample_zero_variance they take up to "
            f"{plan.recipe.most_draws} times as long."
        )
    table.caption = caption
    table.caption_justify = "left"
    return table


def _lengths_line(plan: RunPlan, given: Collection[str]) -> str:
    """Tell the lengths that the tables are about.

    Args:
        plan: The plan.
        given: Names of the lengths that were given; the others are the recipe's limits.
    """
    lengths = plan.lengths
    source = "These are the recipe's limits; where yours are shorter, give them with --prompt, --trace, --trajectory"
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        source = f"{names} as given; the rest are the recipe's limits"
    trace = f"{lengths.trace:,} of the trace" if plan.recipe.uses_traces else "no trace"
    return (
        f"Planned with {lengths.prompt:,} tokens of prompt, {trace}, and {lengths.trajectory:,} of each rollout, "
        f"{lengths.sampled:,} of them sampled by the policy. {source}."
    )


def _hours_line(plan: RunPlan, seconds: Mapping[str, float]) -> str:
    """Tell how long all phases take."""
    phases = plan.recipe.phases or 0
    rollouts = seconds["prefill"] + seconds["decode"]
    update = sum(seconds.values()) - rollouts
    beside = plan.recipe.overlap
    whole = max(rollouts, update) if beside else rollouts + update
    together = ", one beside the other (data.overlap)" if beside else ""
    most = plan.recipe.most_draws * rollouts
    unit, length = ("h", 3600) if phases * whole >= 3600 else ("min", 60)
    times = [f"{phases * part / length:,.2f} {unit}" for part in (whole, rollouts, update, most)]
    if plan.recipe.most_draws > 1:
        together += f"; up to {times[3]} of rollouts with further prompts (data.resample_zero_variance)"
    return (
        f"{counted(phases, 'phase')}: {times[0]} at least, with rollouts of these lengths: "
        f"{times[1]} of rollouts and {times[2]} of updates{together}."
    )


def _fit_lines(plan: RunPlan, fit: Fit, card: int) -> list[str]:
    """Tell the settings that fit a card, and what to do where none does."""
    memory, room = plan.memory, card * USABLE
    engine = memory.engine
    verdict = "fits" if memory.peak <= room else "does not fit"
    if engine is not None and engine.share is not None and engine.share < engine.needed:
        verdict = (
            f"cannot run, since vLLM's share of {_gib(engine.share)} GiB does not hold its weights and one rollout, "
            f"{_gib(engine.needed)} GiB (raise gpu_memory_utilization), on"
        )
    return [
        f"The recipe needs {_gib(memory.peak)} GiB and {verdict} {_gib(card)} GiB ({1 - USABLE:.0%} kept free). "
        "Largest value if you change only one setting:",
        f"  max_tokens_per_forward: {_tokens_that_fit(plan, fit, room)}",
        f"  limits.rows: {_rows_that_fit(plan, fit, room)}",
    ]


def _tokens_that_fit(plan: RunPlan, fit: Fit, room: float) -> str:
    recipe, largest = plan.recipe, fit.tokens
    if plan.memory.in_rollouts > room:
        return f"no value fits: the rollouts alone need {_gib(plan.memory.in_rollouts)} GiB"
    if largest.value is None:
        advice = "" if recipe.policy.gradient_checkpointing else " model.init_args.policy.gradient_checkpointing,"
        return (
            f"no value fits, not even one rollout with its prompt and trace; try{advice} another adapter, a smaller "
            "head_chunk or shorter trajectories"
        )
    if largest.is_all:
        return f"any value; a whole step of about {largest.value:,} tokens fits in one forward"
    needed = recipe.max_prompt_tokens + recipe.max_trajectory_tokens
    short = f", less than the {needed:,} that max_prompt_tokens and max_trajectory_tokens need"
    return f"up to {largest.value:,}{short if largest.value < needed else ''}"


def _rows_that_fit(plan: RunPlan, fit: Fit, room: float) -> str:
    if plan.memory.engine is not None:
        engine = plan.memory.engine
        many = f"at most {engine.rows_at_once:,} of {engine.rows:,} rollouts of these lengths"
        return f"any value; vLLM's cache holds {many} at once, and the others wait"
    if fit.rows is None or fit.rows_at_limits is None:
        return "unknown: it depends on the sampler's memory, which plan does not estimate"
    if plan.memory.in_update > room:
        return f"no value fits: an update alone needs {_gib(plan.memory.in_update)} GiB"
    if fit.rows.value is None:
        return "not even one row fits; try qlora, shorter trajectories or fewer prefill_tokens"
    found = f"all {fit.rows.value:,} rollouts of a phase" if fit.rows.is_all else f"up to {fit.rows.value:,}"
    if fit.rows_at_limits == fit.rows:
        return found
    return f"{found} of these lengths; {fit.rows_at_limits.value or 'none'} if all are as long as the recipe allows"


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f}" if size else "-"

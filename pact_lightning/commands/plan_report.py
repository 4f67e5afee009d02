"""Plans the run of a recipe and prints what it will need."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import nn

from pact_lightning.commands.plan_tables import fit_lines, hours_line, lengths_line, memory_table, work_table
from pact_lightning.lightning_cli import silence_libraries
from pact_lightning.plan.duration import Speed, phase_seconds, probe_speed
from pact_lightning.plan.fitting import largest_fit
from pact_lightning.plan.lengths import Lengths
from pact_lightning.plan.recipe import Recipe, read_recipe
from pact_lightning.plan.run_plan import RunPlan, make_plan
from pact_lightning.policy.attention_shape import AttentionShape
from pact_lightning.policy.loading import policy_skeleton


def print_plan(own: argparse.Namespace, card: int | None, of_fit: Sequence[str]) -> None:
    """Prints what a run will need and how long it will take.

    Args:
        own: The command's own options.
        card: Bytes of the card that is to hold the run.
        of_fit: The other arguments, those of ``fit``.

    Raises:
        ValueError: A length makes no sense, or the recipe cannot be planned.
    """
    silence_libraries()
    recipe = read_recipe(of_fit, own.device)
    given = {name: getattr(own, name) for name in ("prompt", "trace", "trajectory", "sampled_share")}
    given = {name: value for name, value in given.items() if value is not None}
    lengths = _lengths(recipe, given)
    console = Console()
    with console.status("planning"):
        skeleton = policy_skeleton(recipe.policy)
        plan = make_plan(recipe, skeleton, lengths)
        speed = _speed(own, recipe, skeleton)
        seconds = _seconds(plan, speed, skeleton)
        fit = None if card is None else largest_fit(recipe, skeleton, lengths, plan.memory, card)
    console.print(lengths_line(plan, given), soft_wrap=True)
    console.print(memory_table(plan))
    console.print(work_table(plan, seconds, speed))
    if recipe.phases is not None:
        console.print(hours_line(plan, seconds), soft_wrap=True)
    given_speed = own.tflops is not None and own.bandwidth is not None
    if recipe.device_type == "cuda" and not given_speed and not torch.cuda.is_available():
        console.print(
            "There is no CUDA device here, so these seconds are of this machine's CPU: give the card's speed by "
            "--tflops and --bandwidth.",
            soft_wrap=True,
        )
    if fit is not None and card is not None:
        for line in fit_lines(plan, fit, card):
            console.print(line, soft_wrap=True, highlight=False)


def _lengths(recipe: Recipe, given: dict[str, Any]) -> Lengths:
    """The recipe's limits, or what is given instead."""
    changes = {"prompt": "max_prompt_tokens", "trajectory": "max_trajectory_tokens"}
    for name, limit in changes.items():
        if name in given and given[name] > getattr(recipe, limit):
            raise ValueError(
                f"--{name} {given[name]} is over the recipe's {limit}, {getattr(recipe, limit)}; raise that as well"
            )
    if not recipe.uses_traces:
        given.pop("trace", None)
    shorter = replace(recipe, **{changes[name]: given[name] for name in changes if name in given})
    return replace(shorter.longest(), **given)


def _speed(own: argparse.Namespace, recipe: Recipe, skeleton: nn.Module) -> Speed:
    """What was given; what was not is measured."""
    if own.tflops is not None and own.bandwidth is not None:
        return Speed(own.tflops * 10**12, own.bandwidth * 10**9, "given")
    device = torch.device("cuda" if recipe.device_type == "cuda" and torch.cuda.is_available() else "cpu")
    source: Any = skeleton
    measured = probe_speed(device, source.get_input_embeddings().weight.dtype)
    flops = measured.flops if own.tflops is None else own.tflops * 10**12
    bandwidth = measured.bandwidth if own.bandwidth is None else own.bandwidth * 10**9
    part = "" if own.tflops is None and own.bandwidth is None else "in part given, in part "
    return Speed(flops, bandwidth, part + measured.source)


def _seconds(plan: RunPlan, speed: Speed, skeleton: nn.Module) -> dict[str, float]:
    source: Any = skeleton
    shape = AttentionShape.of(skeleton)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return phase_seconds(
        plan.passes,
        plan.decoding,
        speed,
        weight_bytes=plan.memory.standing.weights + plan.memory.standing.adapter,
        cache_bytes_per_token=per_token * source.get_input_embeddings().weight.element_size(),
    )

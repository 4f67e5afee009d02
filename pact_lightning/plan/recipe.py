"""Settings of a recipe that a plan needs; nothing of the recipe is made, loaded or started."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from pact_lightning.objectives.objective import Objective
from pact_lightning.plan.colocated import ColocatedEngine
from pact_lightning.plan.lengths import Context, Lengths, TraceLayout
from pact_lightning.policy.attention.choice import AttentionPath
from pact_lightning.policy.loading import PolicyConfig, policy_positions, with_start
from pact_lightning.policy.packing import PackingMode
from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine
from pact_lightning.rollout.samplers.vllm.server import VLLMServer
from pact_lightning.rollout.samplers.vllm.turns import check_has_adapter
from pact_lightning.utils.imports import import_path


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that decide the needs of a run, under their names in a recipe.

    Attributes:
        policy: ``model.policy``.
        max_context_tokens: Of the model; the policy's positions where it sets none, ``None`` without either.
        max_tokens_per_forward: Of the model.
        packing: Of the model.
        head_chunk: Of the model.
        attention: Of the model.
        offload: ``model.offload_activations``.
        sampler: Class of the model's own sampler, empty for the policy itself.
        engine: The same where it is a vLLM engine in this process; ``None`` for all others.
        optimizer_bits: ``model.optimizer``.
        anchor_probability: Of the model.
        trace_layout: Place of the trace, by ``ratio_context`` and ``trace_template``.
        with_sft: Whether there is an SFT term.
        with_kl: Whether there is a KL term.
        with_entropy: Whether there is an entropy term.
        with_old: Whether ``pi_old`` is taken.
        with_correction: Whether rollouts scored under their trace are scored by the prompt alone as well, for
            ``importance_cap``.
        with_gap: Whether the objective needs rollouts with a trace scored in their other context too.
        with_divergence: Whether it needs the divergence of the two over the whole vocabulary.
        off_spec_rollouts: Rollouts of a prompt that are sampled with its trace in their prompt.
        off_spec_contexts: Contexts in which these are scored.
        prompts_per_phase: Of the data, shared by the processes.
        prompts_per_step: Of the data, shared by the processes.
        rollouts_per_prompt: Of the data.
        max_prompt_tokens: Of the data.
        max_trajectory_tokens: ``data.limits``.
        max_new_tokens_per_turn: ``data.limits``; ``max_trajectory_tokens`` where it sets none.
        rows: ``data.limits``.
        prefill_tokens: Of the data.
        overlap: Whether the next phase's rollouts are made beside the update.
        most_draws: Most prompts that a phase rolls out, as a multiple of ``prompts_per_phase``
            (``data.resample_zero_variance``); 1 without further prompts.
        phases: ``trainer.max_epochs``; ``None`` for no end.
        processes: Devices on all nodes.
        device_type: ``cpu`` or ``cuda``.
    """

    policy: PolicyConfig
    max_context_tokens: int | None
    max_tokens_per_forward: int
    packing: PackingMode
    head_chunk: int
    attention: AttentionPath
    offload: bool
    sampler: str
    engine: ColocatedEngine | None
    optimizer_bits: int
    anchor_probability: float
    trace_layout: TraceLayout
    with_sft: bool
    with_kl: bool
    with_entropy: bool
    with_old: bool
    with_correction: bool
    with_gap: bool
    with_divergence: bool
    off_spec_rollouts: int
    off_spec_contexts: tuple[Context, ...]
    prompts_per_phase: int
    prompts_per_step: int
    rollouts_per_prompt: int
    max_prompt_tokens: int
    max_trajectory_tokens: int
    max_new_tokens_per_turn: int
    rows: int
    prefill_tokens: int
    overlap: bool
    most_draws: int
    phases: int | None
    processes: int
    device_type: str

    @property
    def uses_traces(self) -> bool:
        """``True`` if any forward runs an expert trace."""
        scored = self.trace_layout != "branch" or self.with_sft or self.with_gap
        return self.off_spec_rollouts > 0 or (self.anchor_probability < 1 and scored)

    @property
    def steps(self) -> int:
        """Optimiser steps of a phase."""
        return self.prompts_per_phase // self.prompts_per_step

    @property
    def privileged_prompts(self) -> int:
        """Expected number of an optimiser step's prompts that are scored under their trace."""
        return round((1 - self.anchor_probability) * self.prompts_per_step)

    def longest(self) -> Lengths:
        """Return prompts and rollouts at their limits, and the longest trace that fits a context with them, if any.

        Raises:
            ValueError: Not even a prompt and a rollout fit a forward.
        """
        both = self.max_prompt_tokens + self.max_trajectory_tokens
        if both > self.max_tokens_per_forward:
            raise ValueError(
                f"a prompt of {self.max_prompt_tokens} and a trajectory of {self.max_trajectory_tokens} tokens do not "
                f"fit model.max_tokens_per_forward = {self.max_tokens_per_forward}; raise that, or plan with shorter "
                "ones by --prompt and --trajectory"
            )
        trace = self.max_trajectory_tokens if self.uses_traces else 0
        if self.max_context_tokens is not None:
            trace = min(trace, max(0, self.max_context_tokens - both))
        return Lengths(self.max_prompt_tokens, trace, self.max_trajectory_tokens)


def recipe_of(
    model: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any], device_type: str | None = None
) -> Recipe:
    """Take the settings that a plan needs from a complete configuration.

    Args:
        model: Arguments of PACTModule.
        data: Arguments of RolloutDataModule.
        trainer: Arguments of the Trainer.
        device_type: ``cpu`` or ``cuda``, in place of the Trainer's accelerator.
    """
    processes = _count(trainer["devices"]) * (trainer["num_nodes"] or 1)
    coefficients, limits = model["coefficients"], data["limits"]
    sampler = (model["sampler"] or {}).get("class_path", "")
    capped = bool(sampler) if model["importance_cap"] == "auto" else model["importance_cap"] is not None
    objective = _objective(model["objective"])
    off_spec = round(data["off_spec_share"] * data["rollouts_per_prompt"])
    apart = off_spec > 0 and objective.off_spec_contexts != ("trace",)  # its ratio's denominator is in another context
    policy = with_start(PolicyConfig(**{field.name: model["policy"][field.name] for field in fields(PolicyConfig)}))
    device_type = device_type or _device_type(trainer["accelerator"])
    return Recipe(
        policy=policy,
        max_context_tokens=model["max_context_tokens"] or policy_positions(policy),
        max_tokens_per_forward=model["max_tokens_per_forward"],
        packing=model["packing"],
        head_chunk=model["head_chunk"],
        attention=model["attention"],
        offload=model["offload_activations"],
        sampler=sampler,
        engine=_engine(model["sampler"], policy, device_type),
        optimizer_bits=model["optimizer"]["bits"],
        anchor_probability=model["anchor_probability"],
        trace_layout=_trace_layout(model["ratio_context"], model["trace_template"]),
        with_sft=coefficients["sft"] > 0,
        with_kl=coefficients["kl"] > 0,
        with_entropy=coefficients["entropy"] > 0,
        with_old=data["prompts_per_phase"] > data["prompts_per_step"] or model["ratio_context"] == "cross" or apart,
        with_correction=capped and model["ratio_context"] == "trace",
        with_gap=objective.needs_gap or objective.needs_divergence,
        with_divergence=objective.needs_divergence,
        off_spec_rollouts=off_spec,
        off_spec_contexts=objective.off_spec_contexts,
        prompts_per_phase=max(1, data["prompts_per_phase"] // processes),
        prompts_per_step=max(1, data["prompts_per_step"] // processes),
        rollouts_per_prompt=data["rollouts_per_prompt"],
        max_prompt_tokens=data["max_prompt_tokens"],
        max_trajectory_tokens=limits["max_trajectory_tokens"],
        max_new_tokens_per_turn=limits["max_new_tokens_per_turn"] or limits["max_trajectory_tokens"],
        rows=limits["rows"],
        prefill_tokens=data["prefill_tokens"],
        overlap=data["overlap"],
        most_draws=data["resample_zero_variance"] or 1,
        phases=trainer["max_epochs"] if (trainer["max_epochs"] or -1) > 0 else None,
        processes=processes,
        device_type=device_type,
    )


def _engine(given: Mapping[str, Any] | None, policy: PolicyConfig, device_type: str) -> ColocatedEngine | None:
    """Check that vLLM can sample from the policy, and return the settings of an engine in the same process.

    The machine is not asked: vLLM may be missing here, and a server need not run.
    """
    found = None if given is None else import_path(given["class_path"], "model.sampler")
    if given is None or not isinstance(found, type) or not issubclass(found, VLLMEngine):
        if isinstance(found, type) and issubclass(found, VLLMServer):
            check_has_adapter(policy)
        return None
    engine = found(**given.get("init_args", {}))
    engine.check_policy(policy)
    sleeps = engine.sleep_level > 0 and device_type == "cuda"
    return ColocatedEngine(engine.gpu_memory_utilization, engine.in_nf4(policy), sleeps)


def _objective(given: Mapping[str, Any] | None) -> Objective:
    """Make the objective, which is no more than its settings."""
    if given is None:
        return Objective()
    found: Objective = import_path(given["class_path"], "model.objective")(**given.get("init_args", {}))
    return found


def _trace_layout(ratio_context: str, template: str) -> TraceLayout:
    if ratio_context == "prompt":
        return "branch"
    return "shared" if template == "turns" else "apart"


def _device_type(accelerator: Any) -> str:
    if accelerator in ("gpu", "cuda"):
        return "cuda"
    return "cuda" if accelerator == "auto" and torch.cuda.is_available() else "cpu"


def _count(devices: Any) -> int:
    """Count the devices of a node; ``auto`` and -1 count as one, since the machine is not asked."""
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() and int(devices) > 0 else 1

"""Checks of a recipe's settings beside each other, for ``fit`` and ``plan`` alike."""

from dataclasses import dataclass

from pact_lightning.objectives.objective import Objective
from pact_lightning.rollout.ahead import check_overlap
from pact_lightning.rollout.samplers.base import SamplerBackend
from pact_lightning.training.phase_prompts import PhaseConfig
from pact_lightning.training.resampling import check_resampling
from pact_lightning.utils.processes import check_shares


def check_forwards(head_chunk: int, max_tokens_per_forward: int) -> None:
    """Check the sizes of a forward.

    Raises:
        ValueError: One of them is below 1.
    """
    if head_chunk < 1 or max_tokens_per_forward < 1:
        raise ValueError(
            f"model.head_chunk ({head_chunk}) and model.max_tokens_per_forward ({max_tokens_per_forward}) count "
            "tokens; set both to at least 1"
        )


def check_objective(objective: Objective, ratio_context: str, anchor_probability: float) -> None:
    """Check that an objective is trained in a context that it can be trained in.

    Args:
        objective: The objective.
        ratio_context: ``model.ratio_context``.
        anchor_probability: ``model.anchor_probability``.

    Raises:
        ValueError: It needs another context, or the probability is none.
    """
    if not 0.0 <= anchor_probability <= 1.0:
        raise ValueError(f"anchor_probability must be between 0 and 1, not {anchor_probability}")
    if objective.needs_divergence and ratio_context != "prompt":
        raise ValueError(
            f"{type(objective).__name__} trains the policy under the prompt, but model.ratio_context is "
            f"{ratio_context!r}; set it to 'prompt'"
        )


@dataclass(frozen=True, slots=True)
class OfModel:
    """Settings of the model that a phase's must agree with.

    Attributes:
        sampler: The sampler backend or its class; ``None`` for the policy itself.
        importance_cap: Bound in force on the weights that correct for the sampler.
        trace_template: Place of the trace.
    """

    sampler: SamplerBackend | type | None
    importance_cap: float | None
    trace_template: str


def check_phase(phase: PhaseConfig, model: OfModel, processes: int) -> None:
    """Check that a phase's settings agree with the model's and with the number of processes.

    Args:
        phase: Settings of the phase.
        model: Those of the model.
        processes: Number of processes that train together.

    Raises:
        ValueError: Rollouts cannot be shared evenly, be made beside the update, be replaced, or see a trace.
    """
    if phase.off_spec_share and model.trace_template == "turns":
        raise ValueError(
            "data.off_spec_share samples with the trace quoted in the prompt, and model.trace_template is 'turns', "
            "after which a rollout would go on where the trace ends; set it to user_block or system_block"
        )
    check_shares("data.prompts_per_step", phase.prompts_per_step, processes)
    if phase.overlap:
        check_overlap(model.sampler, model.importance_cap, processes)
    check_resampling(phase.resample_zero_variance, rollouts_per_prompt=phase.rollouts_per_prompt, processes=processes)

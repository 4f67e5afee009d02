"""Plan of a run: its memory at the two fullest moments, and the passes of a phase."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from pact_lightning.plan.colocated import EngineBytes, engine_bytes
from pact_lightning.plan.lengths import (
    Context,
    Decoding,
    Lengths,
    Passes,
    PlannedPack,
    StepShape,
    TraceLayout,
    fullest,
    step_packs,
)
from pact_lightning.plan.memory import (
    RolloutBytes,
    RolloutShape,
    ScoringConfig,
    StandingBytes,
    UpdateBytes,
    rollout_bytes,
    row_cache_bytes,
    standing_bytes,
    update_bytes,
)
from pact_lightning.plan.recipe import Recipe
from pact_lightning.policy.flops import FlopCount, Work
from pact_lightning.rollout.samplers.kv_cache import ROOM_AHEAD


@dataclass(frozen=True, slots=True)
class RunMemory:
    """Bytes of a run.

    Attributes:
        standing: Bytes that stay through a phase.
        update: Bytes of the fullest planned pack.
        fill: Tokens of a full pack, as a multiple of its tokens. Real lengths vary, and some pack will be full.
        rollout: Bytes of rollouts by the policy itself.
        engine: Bytes of a vLLM engine in the same process; ``None`` without one.
        gradients_exist: Whether gradients of a step's earlier packs are there while the fullest one runs.
        offloaded: Whether activations for the backward pass wait in the host's memory.
    """

    standing: StandingBytes
    update: UpdateBytes
    fill: float
    rollout: RolloutBytes
    engine: EngineBytes | None
    gradients_exist: bool
    offloaded: bool

    @property
    def kept(self) -> int:
        """Bytes saved for the backward pass of a full pack, on the device or in the host's memory."""
        return round(self.update.saved * self.fill)

    @property
    def saved(self) -> int:
        """Bytes saved for the backward pass on the device."""
        return 0 if self.offloaded else self.kept

    @property
    def working(self) -> int:
        """Bytes that a full pack takes beside these."""
        return round(self.update.working * self.fill)

    @property
    def in_update(self) -> int:
        """Bytes at the fullest moment of an update, in a backward pass or in the optimiser's step."""
        gradients = self.standing.gradients
        backward = self.saved + self.working + self.standing.dequantised + (gradients if self.gradients_exist else 0)
        beside = 0 if self.engine is None else self.engine.in_update
        return self.standing.always + beside + max(backward, gradients + self.update.step)

    @property
    def in_rollouts(self) -> int:
        """Bytes at the fullest moment of the rollouts."""
        beside = 0 if self.engine is None else self.engine.awake
        return self.standing.always + beside + self.rollout.peak + self.standing.dequantised

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of all."""
        return max(self.in_update, self.in_rollouts)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Plan of a run.

    Attributes:
        recipe: Settings of the run.
        lengths: Tokens of prompts, traces and rollouts.
        memory: Memory at the fullest moments.
        packs: Packs of one optimiser step.
        pack_tokens: Tokens of a full pack.
        passes: Passes of a phase.
        decoding: Decoding steps of its rollouts.
    """

    recipe: Recipe
    lengths: Lengths
    memory: RunMemory
    packs: int
    pack_tokens: int
    passes: list[Passes]
    decoding: Decoding


def make_plan(recipe: Recipe, skeleton: nn.Module, lengths: Lengths, card: int | None = None) -> RunPlan:
    """Plan a run.

    Args:
        recipe: Its settings.
        skeleton: Its policy on the meta device.
        lengths: Tokens of prompts, traces and rollouts.
        card: Bytes of the card, if one is named.
    """
    packs = planned_packs(recipe, lengths)
    decoding = _decoding(recipe, lengths)
    return RunPlan(
        recipe=recipe,
        lengths=lengths,
        memory=run_memory(recipe, skeleton, lengths, packs, card=card),
        packs=len(packs),
        pack_tokens=full_pack_tokens(recipe, packs),
        passes=_passes(recipe, FlopCount.of(skeleton), lengths, packs, decoding),
        decoding=decoding,
    )


def _passes(
    recipe: Recipe, count: FlopCount, lengths: Lengths, packs: Sequence[PlannedPack], decoding: Decoding
) -> list[Passes]:
    """Count the passes of a phase, in their order."""
    prompts, steps = recipe.prompts_per_phase, recipe.steps
    rollouts = prompts * recipe.rollouts_per_prompt
    sampled = rollouts * lengths.sampled
    observed = rollouts * lengths.trajectory - sampled
    pairs = rollouts * count.attention(lengths.trajectory, lengths.prompt)
    sampled_pairs = round(pairs * lengths.sampled / lengths.trajectory)
    prefill = Work(prompts * lengths.prompt, prompts, prompts * count.attention(lengths.prompt))
    prefill += Work(observed, 0, pairs - sampled_pairs)
    if recipe.off_spec_rollouts and lengths.trace:  # their prompt is another one, with the trace in it
        longer = lengths.prompt + lengths.trace
        prefill += Work(prompts * longer, prompts, prompts * count.attention(longer))
    update = _work(count, packs)
    forwards, tokens = steps * len(packs), steps * update.tokens
    passes = [
        Passes("prefill", 0, prefill.tokens, count.forward(prefill)),
        Passes("decode", decoding.steps, sampled, count.forward(Work(sampled, sampled, sampled_pairs))),
    ]
    if recipe.with_old:
        sampled_in = planned_packs(replace(recipe, off_spec_contexts=("trace",)), lengths)
        old = _work(count, sampled_in)
        passes.append(Passes("old", steps * len(sampled_in), steps * old.tokens, steps * count.forward(old)))
    if recipe.with_correction and recipe.privileged_prompts:
        alone = step_packs(_step(recipe, prompts=steps * recipe.privileged_prompts, privileged=0), lengths)
        by_prompt = _work(count, alone)
        passes.append(Passes("old, prompt only", len(alone), by_prompt.tokens, count.forward(by_prompt)))
    if recipe.with_gap and (others := _in_other_context(recipe, lengths)):
        other = _work(count, others)
        passes.append(Passes("other context", steps * len(others), steps * other.tokens, steps * count.forward(other)))
        if recipe.with_divergence:  # the head once more in either context, and back through the policy's
            head = Work(0, other.head_tokens)
            flops = 2 * count.forward(head) + count.backward(head)
            passes.append(Passes("divergence", 0, steps * other.head_tokens, steps * flops))
    if recipe.with_kl:
        passes.append(Passes("reference", forwards, tokens, steps * count.forward(update, with_adapter=False)))
    passes.append(Passes("forward", forwards, tokens, steps * count.forward(update)))
    passes.append(Passes("backward", forwards, tokens, steps * count.backward(update)))
    return passes


def _decoding(recipe: Recipe, lengths: Lengths) -> Decoding:
    """Count the decoding steps of a phase."""
    rollouts = recipe.prompts_per_phase * recipe.rollouts_per_prompt
    rows = min(recipe.rows, rollouts)
    return Decoding(-(-rollouts // rows) * lengths.sampled, lengths.prompt + lengths.trajectory // 2, rows)


def _work(count: FlopCount, packs: Sequence[PlannedPack]) -> Work:
    return sum((count.of_pack(one.pack, one.head_tokens) for one in packs), Work())


def planned_packs(recipe: Recipe, lengths: Lengths) -> list[PlannedPack]:
    """Pack an optimiser step with the expected number of prompts that are scored under their trace."""
    step = _step(recipe, prompts=recipe.prompts_per_step, privileged=recipe.privileged_prompts)
    return step_packs(step, lengths)


def _in_other_context(recipe: Recipe, lengths: Lengths) -> list[PlannedPack]:
    """Pack the rollouts that have a trace in the context that an optimiser step does not score them in."""
    if not lengths.trace:
        return []
    layout: TraceLayout = "apart" if recipe.trace_layout == "branch" else "branch"
    swapped: tuple[Context, ...] = tuple("prompt" if own == "trace" else "trace" for own in recipe.off_spec_contexts)
    off_spec, privileged, prompts = recipe.off_spec_rollouts, recipe.privileged_prompts, recipe.prompts_per_step
    step = replace(_step(recipe, prompts=privileged, privileged=privileged), trace_layout=layout, read_trace=False)
    on_spec = replace(step, rollouts=step.rollouts - off_spec, off_spec_rollouts=0)
    others = replace(step, prompts=prompts, rollouts=off_spec, off_spec_contexts=swapped)
    return [*step_packs(on_spec, lengths), *step_packs(others, lengths)]


def _step(recipe: Recipe, *, prompts: int, privileged: int) -> StepShape:
    return StepShape(
        prompts=prompts,
        privileged=privileged,
        rollouts=recipe.rollouts_per_prompt,
        max_tokens=recipe.max_tokens_per_forward,
        packing=recipe.packing,
        trace_layout=recipe.trace_layout,
        read_trace=recipe.with_sft,
        off_spec_rollouts=recipe.off_spec_rollouts,
        off_spec_contexts=recipe.off_spec_contexts,
    )


def run_memory(
    recipe: Recipe,
    skeleton: nn.Module,
    lengths: Lengths,
    packs: list[PlannedPack],
    *,
    card: int | None = None,
    known: RunMemory | None = None,
) -> RunMemory:
    """Return the most memory that a run takes.

    Args:
        recipe: Its settings.
        skeleton: Its policy on the meta device.
        lengths: Tokens of prompts, traces and rollouts.
        packs: Packs of an optimiser step.
        card: Bytes of the card, if one is named.
        known: Memory of a run with the same rollouts, which are then not run again.
    """
    several = len(packs) > 1
    largest = fullest(packs)
    others = _in_other_context(recipe, lengths) if recipe.with_divergence else []
    kept = sum(planned.head_tokens for planned in others)
    scoring = ScoringConfig(recipe.head_chunk, recipe.with_entropy, recipe.with_kl, recipe.attention, kept)
    return RunMemory(
        standing=standing_bytes(
            skeleton, recipe.policy.adapter, needs_reference=recipe.with_kl, optimizer_bits=recipe.optimizer_bits
        ),
        update=update_bytes(skeleton, largest, scoring, device_type=recipe.device_type, gradients_exist=several),
        fill=full_pack_tokens(recipe, packs) / largest.pack.tokens,
        rollout=_rollout(recipe, skeleton, lengths) if known is None else known.rollout,
        engine=_engine(recipe, skeleton, lengths, card) if known is None else known.engine,
        gradients_exist=several,
        offloaded=recipe.offload and recipe.device_type == "cuda",
    )


def _rollout(recipe: Recipe, skeleton: nn.Module, lengths: Lengths) -> RolloutBytes:
    if recipe.sampler:  # keeps keys and values of its own
        return RolloutBytes(cache=0, growth=0, prefill=0, drawing=0)
    return rollout_bytes(skeleton, rollout_shape(recipe, lengths), device_type=recipe.device_type)


def _engine(recipe: Recipe, skeleton: nn.Module, lengths: Lengths, card: int | None) -> EngineBytes | None:
    if recipe.engine is None:
        return None
    shape = rollout_shape(recipe, lengths)
    row = row_cache_bytes(skeleton, shape.prompt + shape.trajectory, recipe.device_type)
    return engine_bytes(recipe.engine, skeleton, row=row, rows=shape.rows, card=card)


def full_pack_tokens(recipe: Recipe, packs: list[PlannedPack]) -> int:
    """Return the most tokens of a pack: the limit of a forward, all tokens of a step, or one longer sequence."""
    within = min(recipe.max_tokens_per_forward, sum(planned.pack.tokens for planned in packs))
    return max(within, fullest(packs).pack.tokens)


def rollout_shape(recipe: Recipe, lengths: Lengths) -> RolloutShape:
    """Return the size of a batch of rollouts of a recipe."""
    return RolloutShape(
        rows=min(recipe.rows, recipe.prompts_per_phase * recipe.rollouts_per_prompt),
        prompt=lengths.prompt + (lengths.trace if recipe.off_spec_rollouts else 0),
        turn=min(recipe.max_new_tokens_per_turn, ROOM_AHEAD, lengths.trajectory),
        trajectory=lengths.trajectory,
        prefill_tokens=recipe.prefill_tokens,
    )

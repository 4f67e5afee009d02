"""Bytes of a run: of weights, of an optimiser step, and of rollouts.

Weights are added up. An optimiser step and the rollouts run on the meta device, where tensors have no values, and the
bytes alive are counted while the real forward and backward passes run. There is no formula per layer that could fall
behind the code.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from pact_lightning.plan.lengths import PlannedPack
from pact_lightning.plan.meta_device import AttentionKernels, LiveBytes, PlannedAttention, run_backward
from pact_lightning.policy.attention.choice import AttentionPath
from pact_lightning.policy.attention.plan import AttentionShape
from pact_lightning.policy.experts import expert_tensors, experts_per_token
from pact_lightning.policy.flops import linear_layers
from pact_lightning.policy.loading import Adapter
from pact_lightning.policy.logprobs import decoder_and_head, token_logprobs
from pact_lightning.policy.own_attention import attends_by_plan
from pact_lightning.policy.reference import reference_policy
from pact_lightning.rollout.samplers.kv_cache import CachedPlan, KVCache

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight: four bits, a byte of scale per 64 weights, a float32 per 256 such scales (double quantisation)."""

# bitsandbytes' 8-bit moments have a float32 of scale per 256; tensors of fewer than 4,096 weights have 32-bit moments.
_BLOCK, _SMALL = 256, 4096


@dataclass(frozen=True, slots=True)
class StandingBytes:
    """Bytes that stay in memory through a phase.

    Attributes:
        weights: The frozen weights, or all weights of a policy trained in full.
        adapter: The adapter's weights.
        reference: The frozen second copy; 0 with an adapter, or without a KL term.
        gradients: Gradients of the trained weights, from the first backward pass of a step to its end.
        optimizer: AdamW's moments, from the first step on.
        dequantised: The largest 4-bit layer, in the type that it computes in.
    """

    weights: int
    adapter: int
    reference: int
    gradients: int
    optimizer: int
    dequantised: int

    @property
    def always(self) -> int:
        """Bytes of rollouts and updates alike."""
        return self.weights + self.adapter + self.reference + self.optimizer


def standing_bytes(
    skeleton: nn.Module, adapter: Adapter, *, needs_reference: bool, optimizer_bits: int = 32
) -> StandingBytes:
    """Add up a policy's tensors.

    Args:
        skeleton: The policy on the meta device.
        adapter: The trained part.
        needs_reference: Whether there is a KL term.
        optimizer_bits: 32, or 8 for moments of 8 bits.
    """
    frozen = sum(weight.nbytes for weight in skeleton.parameters() if not weight.requires_grad)
    frozen += sum(buffer.nbytes for buffer in skeleton.buffers())
    trained = sum(weight.nbytes for weight in skeleton.parameters() if weight.requires_grad)
    full = adapter == "full"
    dequantised = 0
    if adapter == "qlora":
        linear = linear_layers(skeleton)
        size = linear[0].weight.element_size()
        frozen -= round(sum(module.weight.numel() for module in linear) * (size - NF4_BYTES))
        scales = NF4_BYTES - 0.5  # the experts' own are no tensors of the skeleton
        frozen += round(sum(tensor.weights for tensor in expert_tensors(skeleton)) * scales)
        dequantised = max(module.weight.nbytes for module in linear)
    weights = frozen + trained if full else frozen
    return StandingBytes(
        weights=weights,
        adapter=0 if full else trained,
        reference=weights if full and needs_reference else 0,
        gradients=trained,
        optimizer=sum(_moments(weight, optimizer_bits) for weight in skeleton.parameters() if weight.requires_grad),
        dequantised=dequantised,
    )


def idle_expert_bytes(skeleton: nn.Module, adapter: Adapter, rows: int) -> int:
    """Return the bytes of the experts that none of the rows meets in a decoding step, if each meets some at random.

    Args:
        skeleton: The policy on the meta device.
        adapter: The trained part.
        rows: Rows at a time.
    """
    source: Any = skeleton
    chosen, there = experts_per_token(source.config) or (1, 1)
    size = NF4_BYTES if adapter == "qlora" else source.get_input_embeddings().weight.element_size()
    return round(sum(tensor.weights for tensor in expert_tensors(skeleton)) * size * (1 - chosen / there) ** rows)


def _moments(weight: nn.Parameter, bits: int) -> int:
    """Return the bytes of a weight's two moments in AdamW."""
    if bits == 32:
        return 2 * weight.nbytes
    if weight.numel() < _SMALL:
        return 2 * 4 * weight.numel()
    return 2 * (weight.numel() + 4 * -(-weight.numel() // _BLOCK))


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """Scoring of a pack.

    Attributes:
        head_chunk: Tokens whose logits exist at the same time.
        with_entropy: Whether there is an entropy term.
        with_reference: Whether there is a KL term.
        attention: Attention of packed rows.
        other_tokens: Tokens of a step whose hidden states in the other context are kept for a divergence; 0 for none.
    """

    head_chunk: int
    with_entropy: bool
    with_reference: bool
    attention: AttentionPath = "auto"
    other_tokens: int = 0


@dataclass(frozen=True, slots=True)
class UpdateBytes:
    """Bytes of one pack, beside those that stay.

    Attributes:
        saved: Bytes that the forward saves for the backward pass.
        working: Most bytes beyond these at any moment, without gradients that were there before.
        step: Most bytes that the optimiser's step takes for itself.
    """

    saved: int
    working: int
    step: int

    @property
    def peak(self) -> int:
        """Most bytes at any moment before the optimiser's step."""
        return self.saved + self.working


def update_bytes(
    skeleton: nn.Module, planned: PlannedPack, config: ScoringConfig, *, device_type: str, gradients_exist: bool
) -> UpdateBytes:
    """Run a pack forward and backward and take a step, all on the meta device.

    Args:
        skeleton: The policy on the meta device.
        planned: The pack.
        config: Its scoring.
        device_type: ``cpu`` or ``cuda``, for the attention kernels.
        gradients_exist: Whether an earlier pack of the same step has left gradients. Otherwise they are allocated layer
            by layer, while saved activations are freed.
    """
    trained = [weight for weight in skeleton.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight) if gradients_exist else None
    with AttentionKernels(device_type), LiveBytes() as live:
        live.hold([*skeleton.parameters(), *skeleton.buffers()])
        live.hold([weight.grad for weight in trained if weight.grad is not None])
        before = live.now
        settings: dict[str, Any] = {
            "only": planned.masks,
            "chunk_size": config.head_chunk,
            "with_entropy": config.with_entropy,
            "attention": PlannedAttention(config.attention, device_type),
        }
        against = _kept_states(skeleton, planned, config.other_tokens)
        scores = token_logprobs(skeleton, planned.pack, **settings, against=against)
        loss = torch.stack([score.logp.sum() for score in scores]).sum()
        if config.with_entropy:
            loss = loss + torch.stack([score.entropy.sum() for score in scores if score.entropy is not None]).sum()
        if against is not None:
            loss = loss + torch.stack([score.kl.sum() for score in scores if score.kl is not None]).sum()
        saved = live.now - before
        if config.with_reference:
            frozen_copy = None if isinstance(skeleton, PeftModel) else skeleton
            with reference_policy(skeleton, frozen_copy) as model:
                reference = token_logprobs(model, planned.pack, **(settings | {"with_entropy": False}))
            loss = loss + reference[0].logp.sum()
        run_backward(loss)
        peak = live.peak - before
        del scores, loss
        step = _step_bytes(live, trained, device_type)
    for weight in trained:
        weight.grad = None
    return UpdateBytes(saved, peak - saved, step)


def _kept_states(skeleton: nn.Module, planned: PlannedPack, tokens: int) -> list[Tensor | None] | None:
    """Make the hidden states that a step keeps of another context, and return the share of a pack's reads."""
    if not tokens:
        return None
    source: Any = skeleton
    embedding = source.get_input_embeddings().weight
    kept = torch.empty(max(tokens, planned.head_tokens), embedding.shape[1], dtype=embedding.dtype, device="meta")
    counts = [int(mask.sum()) for mask in planned.masks]
    return [kept[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]


def _step_bytes(live: LiveBytes, trained: list[nn.Parameter], device_type: str) -> int:
    """Return the bytes that AdamW takes beside its moments; on CUDA it goes over all weights at once."""
    optimizer = torch.optim.AdamW(trained, foreach=device_type == "cuda")
    optimizer.step()  # the first one makes the moments
    live.mark()
    before = live.now
    optimizer.step()
    return live.peak - before


BYTES_PER_LOGIT = 4 + 4
"""Bytes of a drawing step per row and word: logits and probabilities in float32."""


@dataclass(frozen=True, slots=True)
class RolloutShape:
    """Size of a batch of rollouts.

    Attributes:
        rows: Rollouts at a time.
        prompt: Tokens of a prompt.
        turn: Tokens that the cache grows ahead for a turn.
        trajectory: Tokens of a rollout after the prompt.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    rows: int
    prompt: int
    turn: int
    trajectory: int
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class RolloutBytes:
    """Bytes of rollouts, beside those that stay.

    Attributes:
        cache: Keys and values of all rows at the end of the longest rollouts.
        growth: Most bytes beside these while the cache grows.
        prefill: Most bytes of a forward over prompts.
        drawing: Bytes of drawing a token for every row.
    """

    cache: int
    growth: int
    prefill: int
    drawing: int

    @property
    def peak(self) -> int:
        """Most bytes at any moment; the parts beside the cache never coincide."""
        return self.cache + max(self.growth, self.prefill, self.drawing)


def rollout_bytes(skeleton: nn.Module, shape: RolloutShape, *, device_type: str) -> RolloutBytes:
    """Fill a cache as long rollouts would, and run a prefill, on the meta device.

    Args:
        skeleton: The policy on the meta device.
        shape: Size of the batch.
        device_type: ``cpu`` or ``cuda``, for the attention kernels.
    """
    source: Any = skeleton
    vocabulary = source.get_output_embeddings().weight.shape[0]
    drawing = shape.rows * vocabulary * BYTES_PER_LOGIT
    if attends_by_plan(decoder_and_head(skeleton)[0]):
        cache, growth = _cache_bytes(source, shape)
        return RolloutBytes(cache, growth, _prefill_bytes(source, shape, device_type), drawing)
    cache, growth, _ = _own_row(source, shape.prompt + shape.trajectory, device_type)
    _, _, prefill = _own_row(source, shape.prompt, device_type)  # one prompt at a time
    return RolloutBytes(shape.rows * cache, growth, prefill, drawing)


def row_cache_bytes(skeleton: nn.Module, tokens: int, device_type: str) -> int:
    """Return the bytes of a rollout's keys and values, and of the states of linear attention.

    Args:
        skeleton: The policy on the meta device.
        tokens: Tokens of the rollout, prompt included.
        device_type: ``cpu`` or ``cuda``, for the attention kernels.
    """
    if not attends_by_plan(decoder_and_head(skeleton)[0]):
        return _own_row(skeleton, tokens, device_type)[0]
    source: Any = skeleton
    shape = AttentionShape.of(skeleton)
    size: int = source.get_input_embeddings().weight.element_size()
    return tokens * 2 * shape.layers * shape.kv_heads * shape.head_dim * size


def _own_row(skeleton: Any, tokens: int, device_type: str) -> tuple[int, int, int]:
    """Run a row through a model that attends in its own way, with transformers' own cache.

    A layer with a window keeps the window, one of linear attention a state of one size; transformers knows which.

    Returns:
        Bytes of the cache at the end, most bytes beside it while the last token runs, and most of the forward before.
    """
    decoder, _ = decoder_and_head(skeleton)
    named = inspect.signature(type(decoder).forward).parameters  # transformers renames the argument
    name = "past_key_values" if "past_key_values" in named else "cache"
    run: Any = decoder
    with torch.no_grad(), AttentionKernels(device_type), LiveBytes() as live:
        live.hold([*skeleton.parameters(), *skeleton.buffers()])
        live.mark()
        before = live.now
        ids = torch.zeros(1, max(tokens, 2), dtype=torch.long, device="meta")
        cache = run(input_ids=ids[:, 1:], use_cache=True).past_key_values
        prefill = live.peak - before
        live.mark()
        cache = run(input_ids=ids[:, :1], use_cache=True, **{name: cache}).past_key_values
        held = sum(_tensor_bytes(vars(layer).values()) for layer in cache.layers)
        return held, max(0, live.peak - before - held), prefill


def _tensor_bytes(values: Iterable[Any]) -> int:
    """Add up tensors, those in dictionaries included."""
    return sum(
        value.nbytes if isinstance(value, Tensor) else _tensor_bytes(value.values()) if isinstance(value, dict) else 0
        for value in values
    )


def _cache_bytes(skeleton: Any, shape: RolloutShape) -> tuple[int, int]:
    """Grow the sampler's own cache turn by turn."""
    with LiveBytes() as live:
        length, end = shape.prompt, shape.prompt + shape.trajectory
        cache = _filled_cache(skeleton, shape.rows, min(length + shape.turn, end))
        while length + shape.turn < end:
            length += shape.turn
            cache.reserve(shape.rows, min(length + shape.turn, end))
        return live.now, live.peak - live.now


def _filled_cache(skeleton: Any, rows: int, capacity: int) -> KVCache:
    shape = AttentionShape.of(skeleton)
    dtype = skeleton.get_input_embeddings().weight.dtype
    key = torch.empty(1, shape.kv_heads, 1, shape.head_dim, dtype=dtype, device="meta")
    cache = KVCache()
    cache.reserve(rows, capacity)
    for layer in range(shape.layers):
        cache.layer(layer, key)
    return cache


def _prefill_bytes(skeleton: Any, shape: RolloutShape, device_type: str) -> int:
    """Run the largest forward over prompts, with the plan that the sampler makes."""
    prompts = min(shape.rows, max(1, shape.prefill_tokens // shape.prompt))
    decoder, _ = decoder_and_head(skeleton)
    with torch.no_grad(), AttentionKernels(device_type), LiveBytes() as live:
        cache = _filled_cache(skeleton, prompts, shape.prompt)
        live.hold([*skeleton.parameters(), *skeleton.buffers()])
        live.mark()
        before = live.now
        plan = CachedPlan(cache, [0] * prompts, shape.prompt, torch.device("meta"), list(range(prompts)))
        ids = torch.zeros(prompts, shape.prompt, dtype=torch.long, device="meta")
        decoder(input_ids=ids, position_ids=plan.positions, attention_plan=plan, use_cache=False)
        return live.peak - before

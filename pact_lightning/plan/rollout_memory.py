"""Memory of rollouts: keys and values of all rows, and what prefill and decoding take beside them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pact_lightning.plan.attention_kernel import AttentionKernels
from pact_lightning.plan.live_bytes import LiveBytes
from pact_lightning.policy.attention_shape import AttentionShape
from pact_lightning.policy.logprobs import decoder_and_head
from pact_lightning.rollout.samplers.kv_cache import CachedPlan, KVCache

BYTES_PER_LOGIT = 4 + 4
"""Of a drawing step, per row and word: logits and probabilities in float32."""


@dataclass(frozen=True, slots=True)
class RolloutShape:
    """What is in work at the same time.

    Attributes:
        rows: Rollouts at a time.
        prompt: Tokens of a prompt.
        turn: Most tokens of a turn.
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
    """Bytes of rollouts, without what is there all the time.

    Attributes:
        cache: Keys and values of all rows at the end of the longest rollouts.
        growth: The most that the cache takes beside that while it grows.
        prefill: The most that a forward over prompts takes.
        drawing: What drawing a token for every row takes.
    """

    cache: int
    growth: int
    prefill: int
    drawing: int

    @property
    def peak(self) -> int:
        """The most at any moment; the parts beside the cache do not come together."""
        return self.cache + max(self.growth, self.prefill, self.drawing)


def rollout_bytes(skeleton: nn.Module, shape: RolloutShape, *, device_type: str) -> RolloutBytes:
    """Fills a cache as long rollouts would, and runs a prefill, on the meta device.

    Args:
        skeleton: The policy on the meta device.
        shape: What is in work.
        device_type: Whose attention kernels are taken.
    """
    source: Any = skeleton
    cache, growth = _cache_bytes(source, shape)
    vocabulary = source.get_output_embeddings().weight.shape[0]
    drawing = shape.rows * vocabulary * BYTES_PER_LOGIT
    return RolloutBytes(cache, growth, _prefill_bytes(source, shape, device_type), drawing)


def _cache_bytes(skeleton: Any, shape: RolloutShape) -> tuple[int, int]:
    """The sampler's own cache, grown turn by turn."""
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
    """The largest forward over prompts, with the plan that the sampler makes."""
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

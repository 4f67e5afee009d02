"""What one layer's attention by a plan gives, and how long it takes: forward and backward, on random values."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pact_lightning.policy.attention import AttentionPlan
from pact_lightning.policy.attention_shape import AttentionShape

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class AttentionTrial:
    """One layer's attention, tried.

    Attributes:
        seconds: Median time of a forward and a backward pass, after one more that is not counted: it may compile.
        results: The output, and the gradients of query, key and value.
    """

    seconds: float
    results: tuple[Tensor, ...]

    def difference(self, other: "AttentionTrial") -> float:
        """The largest difference of any result, by that result's largest value in the other trial."""
        return max(
            float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
            for ours, theirs in zip(self.results, other.results, strict=True)
        )


def try_attention(
    plan: AttentionPlan, tokens: int, shape: AttentionShape, *, dtype: torch.dtype, device: torch.device
) -> AttentionTrial:
    """Attends in one layer, forward and backward, several times; the values are the same for every plan.

    Args:
        plan: How to attend.
        tokens: Tokens of the flat row that the plan was made for.
        shape: Of the decoder.
        dtype: Of its activations.
        device: Where it runs.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = (
        torch.randn(size, generator=generator).to(device, dtype)
        for size in (
            (1, shape.heads, tokens, shape.head_dim),
            *[(1, shape.kv_heads, tokens, shape.head_dim)] * 2,
            (1, tokens, shape.heads, shape.head_dim),
        )
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    layer = nn.Identity()
    seconds: list[float] = []
    results: tuple[Tensor, ...] = ()
    with torch.enable_grad():
        for _ in range(1 + _ROUNDS):
            _wait(device)
            start = time.perf_counter()
            out = plan.attend(layer, query, key, value, scaling=shape.head_dim**-0.5)
            grads = torch.autograd.grad(out, leaves, upstream)
            _wait(device)
            seconds.append(time.perf_counter() - start)
            results = (out.detach(), *grads)
    return AttentionTrial(statistics.median(seconds[1:]), results)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What one layer's attention by a plan gives, and how long it takes: forward and backward, on random values."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pact_lightning.device_time import device_time
from pact_lightning.policy.attention import AttentionPlan
from pact_lightning.policy.attention_shape import AttentionShape

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class AttentionTrial:
    """One layer's attention, tried.

    Attributes:
        seconds: Median time of a forward and a backward pass, after one more that is not counted: it may compile.
        results: The output, and the gradients of query, key and value, on the CPU; the last dimension is a token's.
    """

    seconds: float
    results: tuple[Tensor, ...]

    def difference(self, other: "AttentionTrial") -> float:
        """The largest error of any token's vector, as a share of that vector's length in the other trial.

        Of the vector, not of the largest one anywhere: a token that sees many keys has short ones, and what is wrong
        with it would not show. Lengths below the median count as that; the first token's query has no gradient at all.

        Returns:
            Infinity where anything is not finite.
        """
        found = 0.0
        for ours, theirs in zip(self.results, other.results, strict=True):
            length = theirs.float().norm(dim=-1)
            error = (ours.float() - theirs.float()).norm(dim=-1) / length.clamp(min=float(length.median()))
            if not bool(error.isfinite().all()):
                return math.inf
            found = max(found, float(error.max()))
        return found


def try_attention(
    plan: AttentionPlan, tokens: int, shape: AttentionShape, *, dtype: torch.dtype, device: torch.device
) -> AttentionTrial:
    """Attends in one layer several times, forward alone and with backward; the values are the same for every plan.

    Args:
        plan: How to attend.
        tokens: Tokens of the flat row that the plan was made for.
        shape: Of the decoder.
        dtype: Of its activations.
        device: Where it runs.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        return torch.randn(1, tokens, heads, shape.head_dim, generator=generator).to(device, dtype)

    # Laid out as a model's projections are.
    leaves = [drawn(heads).transpose(1, 2).requires_grad_() for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    upstream = drawn(shape.heads)

    def attend() -> Tensor:
        return plan.attend(nn.Identity(), *leaves, scaling=shape.head_dim**-0.5)

    seconds: list[float] = []
    found: tuple[Tensor, ...] = ()
    with torch.no_grad():
        attend()  # what has no backward pass is compiled apart
    with torch.enable_grad():
        for _ in range(1 + _ROUNDS):
            start = device_time(device)
            out = attend()
            found = (out.detach(), *torch.autograd.grad(out, leaves, upstream))
            seconds.append(device_time(device) - start)
    return AttentionTrial(statistics.median(seconds[1:]), tuple(tensor.cpu() for tensor in found))

"""Shared-prefix attention on a CPU, without padding and without copies of the prefix.

A token sees its own part of the tree and all parts that this goes on from. Each of them is one call of the flash
kernel, a shared part for all that goes on from it at once, and the results are joined by their log-sum-exps. In the
backward pass the kernel gets the joined result and log-sum-exp, and gives each part's exact share of the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pact_lightning.policy.attention.plan import check_planned
from pact_lightning.policy.prefix_tree import BlockLayout, spans

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True, slots=True)
class _Causal:
    """Rows of equal length, each causal on its own: ``count`` times ``length`` tokens from ``start`` on."""

    start: int
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


@dataclass(frozen=True, slots=True)
class _Over:
    """Tokens that see all of a part that they go on from."""

    tokens: slice
    prefix: slice


class BlockwisePlan:
    """An :class:`~pact_lightning.policy.attention.plan.AttentionPlan` for blocks on a CPU [D].

    Equal, gradients included, to running every ``prefix + branch`` on its own.

    Args:
        blocks: The blocks in the order of the flat row.

    Raises:
        ValueError: There is no block.
    """

    def __init__(self, blocks: Sequence[BlockLayout]) -> None:
        self.causal: list[_Causal] = []
        self.over: list[_Over] = []
        self.tokens = 0
        for span in spans(blocks):
            self._add_row(span.start, span.length)
            if span.stop > span.end:
                self.over.append(_Over(slice(span.end, span.stop), slice(span.start, span.end)))
            self.tokens = span.end
        self.places = self.tokens
        """Query places that are computed: there is no padding."""

    @staticmethod
    def available() -> bool:
        """Return whether this build of torch has the kernels."""
        return hasattr(torch.ops.aten, _FORWARD) and hasattr(torch.ops.aten, f"{_FORWARD}_backward")

    def _add_row(self, start: int, length: int) -> None:
        """Add a row to the last call where that has rows of the same length, and as a new call elsewhere."""
        last = self.causal[-1] if self.causal else None
        if last is not None and last.length == length:
            self.causal[-1] = _Causal(last.start, last.count + 1, length)
        else:
            self.causal.append(_Causal(start, 1, length))

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Attend in one layer; see :class:`~pact_lightning.policy.attention.plan.AttentionPlan`."""
        del module
        check_planned(query, self.tokens)
        # Autocast leaves rotated queries and keys in float32 beside values in its own type.
        q, k, v = (tensor[0].to(value.dtype) for tensor in (query, key, value))  # [heads, T, d]
        out: Tensor = _Blockwise.apply(q, k, v, self, scaling)  # type: ignore[no-untyped-call]
        return out[None]


class _Blockwise(torch.autograd.Function):
    """Attention ``[heads, T, d], [kv_heads, T, d], [kv_heads, T, d] -> [T, heads, d]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockwisePlan, scaling: float) -> Tensor:  # noqa: PLR0917
        heads, tokens, width = q.shape
        out = q.new_empty(tokens, heads, width)
        normalizer = q.new_empty(tokens, heads, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        for call in plan.causal:
            part, log_sum = _kernel(
                _rows(q, call), _repeated(_rows(k, call), heads), _repeated(_rows(v, call), heads), True, scaling
            )
            _rows_of(out, call).copy_(part)
            _rows_of(normalizer, call).copy_(log_sum)
        for over in plan.over:
            part, log_sum = _kernel(*_over(q, k, v, over), False, scaling)
            _join(out[over.tokens], normalizer[over.tokens], _flat(part), _flat(log_sum))
        ctx.save_for_backward(q, k, v, out, normalizer)
        ctx.plan, ctx.scaling = plan, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normalizer = ctx.saved_tensors
        plan: BlockwisePlan = ctx.plan
        heads, kv_heads = q.shape[0], k.shape[0]
        by_q, by_k, by_v = (torch.empty_like(tensor) for tensor in (q, k, v))
        for call in plan.causal:
            keys, values = _repeated(_rows(k, call), heads), _repeated(_rows(v, call), heads)
            log_sum = _rows_of(normalizer, call)
            grads = _kernel_backward(
                _rows_of(upstream, call),
                (_rows(q, call), keys, values),
                _rows_of(out, call),
                log_sum,
                causal=True,
                scaling=ctx.scaling,
            )
            _rows(by_q, call).copy_(grads[0])
            for target, grad in ((by_k, grads[1]), (by_v, grads[2])):
                _rows(target, call).copy_(torch.unflatten(grad, 1, (kv_heads, heads // kv_heads)).sum(2))
        for over in plan.over:
            grads = _kernel_backward(
                _grouped(upstream[over.tokens].transpose(0, 1), kv_heads),
                _over(q, k, v, over),
                _grouped(out[over.tokens].transpose(0, 1), kv_heads),
                _grouped(normalizer[over.tokens].T, kv_heads),
                causal=False,
                scaling=ctx.scaling,
            )
            _grouped(by_q[:, over.tokens], kv_heads).add_(grads[0])
            by_k[:, over.prefix] += grads[1].sum(0)
            by_v[:, over.prefix] += grads[2].sum(0)
        return by_q, by_k, by_v, None, None


def _rows(flat: Tensor, call: _Causal) -> Tensor:
    """View rows of ``[heads, T, d]`` as ``[count, heads, length, d]``."""
    return torch.unflatten(flat[:, call.tokens], 1, (call.count, call.length)).transpose(0, 1)


def _rows_of(flat: Tensor, call: _Causal) -> Tensor:
    """View rows of ``[T, heads, ...]`` as ``[count, heads, length, ...]``."""
    return torch.unflatten(flat[call.tokens], 0, (call.count, call.length)).transpose(1, 2)


def _repeated(rows: Tensor, heads: int) -> Tensor:
    """Repeat every key head for each query head that shares it; the kernel knows no grouped heads."""
    return rows if rows.shape[1] == heads else rows.repeat_interleave(heads // rows.shape[1], dim=1)


def _grouped(flat: Tensor, kv_heads: int) -> Tensor:
    """View ``[heads, ...]`` as ``[groups, kv_heads, ...]``: with groups as the batch, keys need no copies."""
    return torch.unflatten(flat, 0, (kv_heads, -1)).transpose(0, 1)


def _flat(grouped: Tensor) -> Tensor:
    """View ``[groups, kv_heads, T, ...]`` as ``[T, heads, ...]``."""
    return grouped.transpose(0, 1).flatten(0, 1).transpose(0, 1)


def _over(q: Tensor, k: Tensor, v: Tensor, over: _Over) -> tuple[Tensor, Tensor, Tensor]:
    queries = _grouped(q[:, over.tokens], k.shape[0])  # [groups, kv_heads, n, d]
    keys, values = (tensor[:, over.prefix].expand(queries.shape[0], -1, -1, -1) for tensor in (k, v))
    return queries, keys, values


def _join(out: Tensor, normalizer: Tensor, part: Tensor, log_sum: Tensor) -> None:
    """Join two attention results over different keys, in place."""
    total = torch.logaddexp(normalizer, log_sum)  # [n, heads]
    out.mul_((normalizer - total).exp_()[..., None]).addcmul_(part, (log_sum - total).exp_()[..., None].to(part.dtype))
    normalizer.copy_(total)


def _kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    out, log_sum = getattr(torch.ops.aten, _FORWARD)(q, k, v, 0.0, causal, scale=scaling)
    return out, log_sum


def _kernel_backward(
    upstream: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    log_sum: Tensor,
    *,
    causal: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = getattr(torch.ops.aten, f"{_FORWARD}_backward")
    by_q, by_k, by_v = backward(upstream, *inputs, out, log_sum, 0.0, causal, scale=scaling)
    return by_q, by_k, by_v

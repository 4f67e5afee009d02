"""Log-probabilities straight from a linear head's weight: a gradient written out by hand, no logits kept.

Per chunk of tokens the logits stand in one buffer that is overwritten in place and used again for the next chunk.
Autograd would keep, or make anew, several tensors of that size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float, chunk_size: int
) -> Tensor:
    """``log softmax((hidden W' + b) / temperature)`` at the targets [D].

    Where the head is trained, its logits are made anew in the backward pass. Where it is frozen, as under an adapter,
    the forward pass leaves behind the derivative of every log-probability by its hidden state, ``[N, D]`` in all, and
    nothing is made anew: two products with the weight instead of three.

    Args:
        hidden: ``[N, D]``, of the weight's dtype.
        weight: ``[V, D]``.
        bias: ``[V]``, or ``None``.
        targets: Token ids ``[N]``.
        temperature: The sampling temperature.
        chunk_size: Tokens whose logits exist at the same time.

    Returns:
        ``[N]``, float32. It can be differentiated once.
    """
    logp: Tensor = _LinearLogProbs.apply(hidden, weight, bias, targets, temperature, chunk_size)  # type: ignore[no-untyped-call]
    return logp


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        slopes = torch.empty_like(hidden) if needs_hidden and not (needs_weight or needs_bias) else None
        logits = _Logits(hidden, weight, bias, temperature, chunk_size)
        logp = hidden.new_empty(targets.shape, dtype=torch.float32)
        normalizer = torch.empty_like(logp)
        for rows in logits.chunks():
            scores = logits.of(rows)
            chosen = scores.gather(-1, targets[rows, None])[:, 0]
            largest = scores.amax(-1)
            exponentials = scores.sub_(largest[:, None]).exp_()
            sums = exponentials.sum(-1)
            normalizer[rows] = largest + sums.log()
            logp[rows] = chosen - normalizer[rows]
            if slopes is not None:
                probabilities = exponentials.div_(sums[:, None])
                slope = _by_logits(probabilities, targets[rows], torch.ones_like(sums), temperature)
                torch.mm(slope.to(weight.dtype), weight, out=slopes[rows])
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        if slopes is not None:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (slopes * upstream[:, None]).to(slopes.dtype), None, None, None, None, None
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums over all tokens: in float32, however coarse the head's own type is.
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        logits = _Logits(hidden, weight, bias, ctx.temperature, ctx.chunk_size)
        for rows in logits.chunks():
            probabilities = logits.of(rows).sub_(normalizer[rows, None]).exp_()
            slope = _by_logits(probabilities, targets[rows], upstream[rows], ctx.temperature)
            if by_bias is not None:
                by_bias += slope.sum(0)
            low = slope.to(weight.dtype)
            if by_hidden is not None:
                torch.mm(low, weight, out=by_hidden[rows])
            if by_weight is not None and weight.dtype == torch.float32:
                by_weight.addmm_(low.T, hidden[rows])
            elif by_weight is not None:
                by_weight += low.T @ hidden[rows]
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None or bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _Logits:
    """Scaled logits of one chunk at a time, in one float32 buffer (and one of the head's dtype where it is coarser)."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk_size: int
    ) -> None:
        self.hidden, self.weight, self.bias, self.temperature, self.size = hidden, weight, bias, temperature, chunk_size
        shape = (min(chunk_size, len(hidden)), len(weight))
        self._product = hidden.new_empty(shape)
        self._scores = self._product if hidden.dtype == torch.float32 else hidden.new_empty(shape, dtype=torch.float32)

    def chunks(self) -> list[slice]:
        return [
            slice(start, min(start + self.size, len(self.hidden))) for start in range(0, len(self.hidden), self.size)
        ]

    def of(self, rows: slice) -> Tensor:
        """``[n, V]``; valid until the next call, and free to be overwritten."""
        count = rows.stop - rows.start
        product = torch.mm(self.hidden[rows], self.weight.T, out=self._product[:count])
        if self.bias is not None:
            product += self.bias
        scores = self._scores[:count]
        if scores.dtype != product.dtype:
            scores.copy_(product)
        return scores if self.temperature == 1.0 else scores.div_(self.temperature)


def _by_logits(probabilities: Tensor, targets: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    """``upstream * (onehot - softmax) / temperature``, written over the softmax ``[n, V]``."""
    factor = upstream / temperature
    return probabilities.mul_(-factor[:, None]).scatter_add_(-1, targets[:, None], factor[:, None])

"""Log-probabilities of a linear head, with a gradient written out by hand and no logits kept.

The logits of a chunk of tokens stand in one buffer (two where entropies are wanted), which is overwritten in place and
serves the next chunk too. Autograd would keep, or make anew, several tensors of that size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float | Tensor,
    chunk_size: int,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Score targets by ``log softmax((hidden W' + b) / temperature)``, with entropies on request [D].

    Logits are made anew in the backward pass. With a frozen head, as under an adapter, and without entropies the
    forward pass saves the derivative of every log-probability by its hidden state, ``[N, D]``, and nothing is made
    anew: two products with the weight instead of three.

    Args:
        hidden: ``[N, D]``, of the weight's dtype.
        weight: ``[V, D]``.
        bias: ``[V]``, or ``None``.
        targets: Token ids ``[N]``.
        temperature: Divisor of the logits: one for all tokens, or one per token ``[N]``.
        chunk_size: Tokens whose logits exist at the same time.
        with_entropy: Whether entropies are wanted.

    Returns:
        Log-probabilities ``[N]``, and entropies ``[N]`` in nats or ``None``; both in float32 or wider, and
        differentiable once.
    """
    logp, entropy = _LinearLogProbs.apply(hidden, weight, bias, targets, temperature, chunk_size, with_entropy)  # type: ignore[no-untyped-call]
    return logp, entropy


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float | Tensor,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        frozen = needs_hidden and not (needs_weight or needs_bias)
        slopes = torch.empty_like(hidden) if frozen and not with_entropy else None
        logits = _Logits(hidden, weight, bias, temperature, chunk_size)
        logp = hidden.new_empty(targets.shape, dtype=logits.dtype)
        normalizer = torch.empty_like(logp)
        entropy = torch.empty_like(logp) if with_entropy else None
        for rows in logits.chunks():
            scores = logits.of(rows)  # [n, V]
            chosen = scores.gather(-1, targets[rows, None])[:, 0]  # [n]
            largest = scores.amax(-1)  # [n]
            shifted = scores.sub_(largest[:, None])
            exponentials = shifted.exp_() if entropy is None else torch.exp(shifted, out=logits.spare(rows))
            sums = exponentials.sum(-1)
            normalizer[rows] = largest + sums.log()
            logp[rows] = chosen - normalizer[rows]
            if entropy is not None:  # H = log sum(e) - E[s], of the shifted scores s
                entropy[rows] = sums.log() - shifted.mul_(exponentials).sum(-1) / sums
            if slopes is not None:
                probabilities = exponentials.div_(sums[:, None])
                slope = _by_logits(probabilities, targets[rows], torch.ones_like(sums), _of(temperature, rows))
                torch.mm(slope.to(weight.dtype), weight, out=slopes[rows])
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        if slopes is not None:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizer, entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, upstream_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (slopes * upstream[:, None]).to(slopes.dtype), *[None] * 6
        hidden, weight, bias, targets, normalizer, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_hidden = torch.empty_like(hidden) if needs_hidden else None
        logits = _Logits(hidden, weight, bias, ctx.temperature, ctx.chunk_size)
        # Sums over all tokens: in float32, however coarse the head's own type is.
        by_weight = torch.zeros_like(weight, dtype=logits.dtype) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=logits.dtype) if needs_bias else None
        for rows in logits.chunks():
            log_probabilities = logits.of(rows).sub_(normalizer[rows, None])  # [n, V]
            divisor = _of(ctx.temperature, rows)
            if entropy is None or upstream_entropy is None:
                slope = _by_logits(log_probabilities.exp_(), targets[rows], upstream[rows], divisor)
            else:
                slope = _with_entropy_by_logits(
                    log_probabilities,
                    torch.exp(log_probabilities, out=logits.spare(rows)),
                    targets[rows],
                    (upstream[rows] / divisor, upstream_entropy[rows] / divisor),
                    entropy[rows],
                )
            if by_bias is not None:
                by_bias += slope.sum(0)
            low = slope.to(weight.dtype)  # [n, V]
            if by_hidden is not None:
                torch.mm(low, weight, out=by_hidden[rows])
            if by_weight is not None and weight.dtype == by_weight.dtype:
                by_weight.addmm_(low.T, hidden[rows])
            elif by_weight is not None:
                by_weight += low.T @ hidden[rows]
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None or bias is None else by_bias.to(bias.dtype),
            *[None] * 4,
        )


class _Logits:
    """Scaled logits of a chunk, in one buffer of float32 or wider, and one more in the head's dtype if narrower."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperature: float | Tensor,
        chunk_size: int,
    ) -> None:
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden, self.weight, self.bias, self.temperature, self.size = hidden, weight, bias, temperature, chunk_size
        shape = (min(chunk_size, len(hidden)), len(weight))
        self._product = hidden.new_empty(shape)
        self._scores = self._product if hidden.dtype == self.dtype else hidden.new_empty(shape, dtype=self.dtype)
        self._spare: Tensor | None = None

    def chunks(self) -> list[slice]:
        return [
            slice(start, min(start + self.size, len(self.hidden))) for start in range(0, len(self.hidden), self.size)
        ]

    def spare(self, rows: slice) -> Tensor:
        """Return a second buffer ``[n, V]``."""
        if self._spare is None:
            self._spare = torch.empty_like(self._scores)
        return self._spare[: rows.stop - rows.start]

    def of(self, rows: slice) -> Tensor:
        """Compute logits ``[n, V]``, valid until the next call and free to be overwritten."""
        count = rows.stop - rows.start
        product = torch.mm(self.hidden[rows], self.weight.T, out=self._product[:count])
        if self.bias is not None:
            product += self.bias
        scores = self._scores[:count]
        if scores.dtype != product.dtype:
            scores.copy_(product)
        if isinstance(self.temperature, Tensor):
            return scores.div_(self.temperature[rows, None])
        return scores if self.temperature == 1.0 else scores.div_(self.temperature)


def _of(temperature: float | Tensor, rows: slice) -> float | Tensor:
    return temperature[rows] if isinstance(temperature, Tensor) else temperature


def _by_logits(probabilities: Tensor, targets: Tensor, upstream: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute ``upstream * (onehot - softmax) / temperature`` over the softmax ``[n, V]``, in place."""
    factor = upstream / temperature
    return probabilities.mul_(-factor[:, None]).scatter_add_(-1, targets[:, None], factor[:, None])


def _with_entropy_by_logits(
    log_probabilities: Tensor, probabilities: Tensor, targets: Tensor, factors: tuple[Tensor, Tensor], entropy: Tensor
) -> Tensor:
    """Compute ``u (onehot - p) - v p (log p + H)`` over ``log p`` ``[n, V]``, in place; ``factors`` are u and v."""
    factor, factor_entropy = factors
    inner = log_probabilities.add_(entropy[:, None]).mul_(factor_entropy[:, None]).add_(factor[:, None])
    return inner.mul_(probabilities).neg_().scatter_add_(-1, targets[:, None], factor[:, None])

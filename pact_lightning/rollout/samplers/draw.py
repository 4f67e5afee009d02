"""Draws tokens by inverse transform: a uniform number picks the token in whose share of [0, 1) it lies."""

import torch
from torch import Tensor

BLOCK = 128
"""Tokens whose probabilities are summed before one of them is looked at."""


def draw_tokens(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's uniform number.

    A running sum over a whole vocabulary in float64 costs more than the head's own product on a CPU. So blocks are
    summed first, a block is found, and only its tokens are summed one by one. Sums are float64: a vocabulary of 150,000
    would lose its tail in float32 [D].

    Args:
        probabilities: ``[n, V]``, not negative, each row with a positive sum, which need not be 1.
        uniforms: ``[n]``, in [0, 1), float64.

    Returns:
        Token ids ``[n]``.
    """
    vocabulary = probabilities.shape[1]
    whole = vocabulary - vocabulary % BLOCK
    sums = torch.unflatten(probabilities[:, :whole], 1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    ends = sums.cumsum(-1)  # [n, blocks]
    points = uniforms[:, None] * ends[:, -1:]
    block = _first_above(ends, points)
    inside = points - (ends - sums).gather(1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=probabilities.device)  # [n, BLOCK]
    shares = probabilities.gather(1, tokens.clamp(max=vocabulary - 1)).double()
    shares = shares.masked_fill(tokens >= vocabulary, 0.0)
    return (block * BLOCK + _first_above(shares.cumsum(-1), inside))[:, 0]


def _first_above(ends: Tensor, points: Tensor) -> Tensor:
    """Index of the first end above the point, ``[n, 1]``.

    Rounding may leave a point outside [0, last end); it is moved in, so that what is found has a share above 0.
    """
    below_end = torch.nextafter(ends[:, -1:], torch.zeros_like(points))
    return torch.searchsorted(ends, torch.minimum(points.clamp(min=0.0), below_end), right=True)

"""KL divergence between a policy's next-token distributions in two contexts, over the whole vocabulary, in chunks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def chunked_kl(
    hidden: Tensor,
    other: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float | Tensor = 1.0,
    chunk_size: int = 1024,
) -> Tensor:
    """Compute ``KL( softmax(head(hidden) / t) || sg softmax(head(other) / t) )`` of every token.

    Logits of a chunk are made anew in the backward pass: at most two times ``chunk_size x V`` exist at a time.

    Args:
        hidden: Hidden states that predict the tokens, ``[N, D]``.
        other: Those in the other context, ``[N, D]``; no gradient flows into them, nor into the head by way of them.
        head: Hidden states ``[n, D]`` to logits ``[n, V]``.
        temperature: Divisor of the logits: one for all, or one per token ``[N]``.
        chunk_size: Tokens whose logits exist at the same time.

    Returns:
        The divergences in nats, ``[N]``, in float32 or wider.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    divisors = torch.as_tensor(temperature, dtype=dtype, device=hidden.device).expand(len(hidden))  # [N]
    parts = [torch.split(part, chunk_size) for part in (hidden, other.detach(), divisors)]
    found = [
        checkpoint(_kl, *rows, head, use_reentrant=False, preserve_rng_state=False) for rows in zip(*parts, strict=True)
    ]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=dtype)


def _kl(hidden: Tensor, other: Tensor, divisor: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        target = (head(other).to(divisor.dtype) / divisor[:, None]).log_softmax(-1)  # [n, V]
    policy = (head(hidden).to(divisor.dtype) / divisor[:, None]).log_softmax(-1)  # [n, V]
    return (policy.exp() * (policy - target)).sum(-1)  # [n]

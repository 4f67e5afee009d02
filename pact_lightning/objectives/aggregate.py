"""How per-token values of a group become one number (METHOD section 4, aggregation)."""

import torch
from torch import Tensor


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a rollout's masked tokens, then over the group's rollouts [C].

    A rollout without a masked token contributes 0 and still counts as a rollout [D], so that a group's scale does not
    depend on how many of its rollouts were cut. Values outside the mask are never read: they may be anything, ``nan``
    included, and get a gradient of 0.

    Args:
        values: One value per token, ``[K, T]``.
        mask: Which tokens count, bool or 0/1, ``[K, T]``.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ or are not ``[K, T]``, or the mask is empty for the whole group.
    """
    check_group(mask, values=values)
    kept = mask.bool()
    sums = values.masked_fill(~kept, 0.0).sum(dim=-1)
    return (sums / kept.sum(dim=-1).clamp(min=1)).mean()


def check_group(mask: Tensor, **tensors: Tensor) -> None:
    """Checks that the named tensors have the mask's shape ``[K, T]`` and that some token of the group is masked in.

    Raises:
        ValueError: They have not, or none is; the sentence names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.shape != mask.shape:
            raise ValueError(
                f"{name} and mask must both have the shape [rollouts, tokens], "
                f"but they have {list(tensor.shape)} and {list(mask.shape)}"
            )
    if not bool(torch.any(mask != 0)):
        raise ValueError("the mask selects no token in the whole group; leave such a group out of the loss")

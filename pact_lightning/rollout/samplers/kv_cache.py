"""A key-value cache whose rows advance independently, and the attention plan that reads and writes it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class KVCache:
    """Keys and values of many rows, each with a length of its own.

    Rows live in slots ``0 .. n-1`` without gaps, so that a decoding step reads one view and copies nothing.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.slots = 0
        self.capacity = 0

    def reserve(self, slots: int, capacity: int) -> None:
        """Makes room for so many slots and tokens per slot; grows by half at least, so that it grows seldom."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        self.slots = max(self.slots, slots)
        if capacity > self.capacity:
            self.capacity = max(capacity, self.capacity * 3 // 2)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                store[layer] = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
                store[layer][: old.shape[0], :, : old.shape[2]] = old

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[slots, kv_heads, capacity, d]``; made when first written."""
        if index not in self.keys:
            shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
            self.keys[index], self.values[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[index], self.values[index]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copies the first ``length`` tokens of a slot into others."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[targets, :, :length] = tensor[source, :, :length]


class CachedPlan:
    """New tokens of some rows attend to all earlier tokens of their row.

    Args:
        cache: The cache, with room for the new tokens.
        lengths: Tokens already cached of each row. Plain numbers: a tensor on a GPU would have to be waited for.
        tokens: New tokens per row, right-padded; what padding writes lies beyond the row's end and is overwritten.
        device: Where the model runs.
        slots: Slot of each row; ``None`` for slots ``0 .. B-1``, which costs no copy.
    """

    def __init__(
        self,
        cache: KVCache,
        lengths: Sequence[int],
        tokens: int,
        device: torch.device | str,
        slots: Sequence[int] | None = None,
    ) -> None:
        self._cache = cache
        self._slots = None if slots is None else torch.tensor(slots, device=device)
        self._rows = torch.arange(len(lengths), device=device) if self._slots is None else self._slots
        self.positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(tokens, device=device)  # [B, T]
        self._span = max(lengths) + tokens
        self._mask: Tensor | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Writes the new keys and values, then attends; see :class:`pact_lightning.policy.attention.AttentionPlan`."""
        layer = module.layer_idx
        assert isinstance(layer, int)
        keys, values = self._cache.layer(layer, key)
        keys[self._rows[:, None], :, self.positions] = key.transpose(1, 2)
        values[self._rows[:, None], :, self.positions] = value.transpose(1, 2)
        if self._slots is None:
            count = len(self._rows)
            keys, values = keys[:count, :, : self._span], values[:count, :, : self._span]
        else:
            keys, values = keys[self._slots, :, : self._span], values[self._slots, :, : self._span]
        groups = query.shape[1] // key.shape[1]
        tokens = query.shape[2]
        # Query heads that share a key head stand below each other, so that keys need not be repeated.
        stacked = torch.unflatten(query, 1, (key.shape[1], groups)).flatten(2, 3)  # [B, kv_heads, groups * T, d]
        mask = self._additive_mask(groups, query.dtype)
        out = scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scaling)
        return torch.unflatten(out, 2, (groups, tokens)).flatten(1, 2).transpose(1, 2)

    def _additive_mask(self, groups: int, dtype: torch.dtype) -> Tensor:
        """``[B, 1, groups * T, span]``: 0 where a token may look, else minus infinity; one for all layers.

        SDPA makes this of a Boolean mask by itself, but anew in every layer.
        """
        if self._mask is None:
            columns = torch.arange(self._span, device=self.positions.device)
            hidden = columns > self.positions[:, :, None]  # [B, T, span]
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._mask = mask.repeat(1, groups, 1)[:, None]
        return self._mask

"""A key-value cache whose rows advance independently, and the attention plan that reads and writes it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SPLIT_ABOVE = {"cpu": 512, "gpu": 8192}
"""Columns of padding, summed over rows, that one more call of attention is worth. On a GPU a call costs little more
than its launch, and columns are read some hundred times faster."""


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
                new = store[layer] = old.new_empty(self.slots, old.shape[1], self.capacity, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                # A masked column still enters as 0 times its value, which must be a number.
                new[: old.shape[0], :, old.shape[2] :] = 0
                new[old.shape[0] :] = 0

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
                # Of a full slot torch takes the whole store for what is read, and refuses to write into it.
                tensor[targets, :, :length] = tensor[source, :, :length].clone()


@dataclass(slots=True)
class _Run:
    """Neighbouring rows of a batch that attend in one call, over as many columns as the longest of them has."""

    start: int
    stop: int
    span: int
    mask: Tensor | None = None


def runs_of_similar_length(lengths: Sequence[int], split_above: int) -> list[tuple[int, int]]:
    """Cuts a batch into runs of neighbours, so that short rows are not padded to the longest row of all.

    >>> runs_of_similar_length([900, 880, 100, 120, 90], split_above=512)
    [(0, 2), (2, 5)]

    Args:
        lengths: Columns that each row needs.
        split_above: A run ends where one more row would pad the run by more columns, summed over its rows, than a
            call of its own is worth.

    Returns:
        ``(start, stop)`` of every run, in order; together they are the batch.
    """
    starts, padding, longest = [0], 0, lengths[0]
    for row, length in enumerate(lengths[1:], start=1):
        grown = max(longest, length)
        padding += (row - starts[-1]) * (grown - longest) + grown - length
        longest = grown
        if padding > split_above:
            starts.append(row)
            padding, longest = 0, length
    return list(itertools.pairwise([*starts, len(lengths)]))


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
        device: torch.device,
        slots: Sequence[int] | None = None,
    ) -> None:
        self._cache = cache
        self._slots = None if slots is None else torch.tensor(slots, device=device)
        self._rows = torch.arange(len(lengths), device=device) if self._slots is None else self._slots
        self.positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(tokens, device=device)  # [B, T]
        split_above = SPLIT_ABOVE["cpu" if device.type == "cpu" else "gpu"]
        self._runs = [
            _Run(start, stop, max(lengths[start:stop]) + tokens)
            for start, stop in runs_of_similar_length(lengths, split_above)
        ]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Write the new keys and values, then attend (see ``AttentionPlan``)."""
        layer = module.layer_idx
        assert isinstance(layer, int)
        keys, values = self._cache.layer(layer, key)
        keys[self._rows[:, None], :, self.positions] = key.transpose(1, 2)
        values[self._rows[:, None], :, self.positions] = value.transpose(1, 2)
        groups = query.shape[1] // key.shape[1]
        # Query heads that share a key head stand below each other, so that keys need not be repeated.
        stacked = torch.unflatten(query, 1, (key.shape[1], groups)).flatten(2, 3)  # [B, kv_heads, groups * T, d]
        outs = [
            scaled_dot_product_attention(
                stacked[run.start : run.stop],
                self._read(keys, run),
                self._read(values, run),
                attn_mask=self._additive_mask(run, groups, query.dtype),
                scale=scaling,
            )
            for run in self._runs
        ]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return torch.unflatten(out, 2, (groups, query.shape[2])).flatten(1, 2).transpose(1, 2)

    def _read(self, store: Tensor, run: _Run) -> Tensor:
        """What the run's rows have in a layer, ``[rows, kv_heads, span, d]``."""
        if self._slots is None:
            return store[run.start : run.stop, :, : run.span]
        return store[self._slots[run.start : run.stop], :, : run.span]

    def _additive_mask(self, run: _Run, groups: int, dtype: torch.dtype) -> Tensor:
        """``[rows, 1, groups * T, span]``: 0 where a token may look, else minus infinity; one for all layers.

        SDPA makes this of a Boolean mask by itself, but anew in every layer.
        """
        if run.mask is None:
            columns = torch.arange(run.span, device=self.positions.device)
            hidden = columns > self.positions[run.start : run.stop, :, None]  # [rows, T, span]
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            run.mask = mask.repeat(1, groups, 1)[:, None]
        return run.mask

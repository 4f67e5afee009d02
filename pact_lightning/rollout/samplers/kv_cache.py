"""Key-value cache whose rows advance independently, and the attention plan that reads and writes it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SPLIT_ABOVE = {"cpu": 512, "gpu": 8192}
"""Columns of padding, summed over rows, that cost as much as one more call of attention. On a GPU columns are read some
hundred times faster, while a call costs little more than its launch."""

ROOM_AHEAD = 1024
"""Tokens of a turn that the cache has room for when the turn begins; it grows where a turn is longer."""


class KVCache:
    """Keys and values of many rows, each with a length of its own.

    Rows live in slots ``0 .. n-1`` without gaps: a decoding step reads one view and copies nothing.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}  # by layer, [slots, kv_heads, capacity, d]
        self.values: dict[int, Tensor] = {}
        self.slots = 0
        self.capacity = 0

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for so many slots and tokens per slot; it grows by half at least, and therefore seldom."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        self.slots = max(self.slots, slots)
        if capacity > self.capacity:
            self.capacity = max(capacity, self.capacity * 3 // 2)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = store[layer] = old.new_empty(self.slots, old.shape[1], self.capacity, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                # A masked column still enters as 0 times its value, which must not be NaN or infinite.
                new[: old.shape[0], :, old.shape[2] :] = 0
                new[old.shape[0] :] = 0

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, made at the first call; ``like`` has their heads, size and type."""
        if index not in self.keys:
            shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
            self.keys[index], self.values[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[index], self.values[index]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copy the first ``length`` tokens of a slot into others."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                # Without the clone torch refuses to copy a full slot: it sees the tensor read and written at once.
                tensor[targets, :, :length] = tensor[source, :, :length].clone()


@dataclass(slots=True)
class _Run:
    """Neighbouring rows of a batch that attend in one call."""

    start: int
    stop: int
    span: int  # columns of the longest row
    mask: Tensor | None = None


def runs_of_similar_length(lengths: Sequence[int], split_above: int) -> list[tuple[int, int]]:
    """Cut a batch into runs of neighbours of similar length, which need less padding than the whole batch.

    >>> runs_of_similar_length([900, 880, 100, 120, 90], split_above=512)
    [(0, 2), (2, 5)]

    Args:
        lengths: Columns of each row.
        split_above: Most columns of padding in a run, summed over its rows.

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
    """Attention of new tokens to all earlier tokens of their rows.

    Args:
        cache: Cache with room for the new tokens.
        lengths: Cached tokens of each row, as numbers, since a tensor on a GPU would have to be waited for.
        tokens: New tokens per row, right-padded; padding writes beyond the row's end and is overwritten later.
        device: Device of the model.
        slots: Slot of each row; ``None`` for slots ``0 .. B-1``, which need no copy.
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
        keys, values = self._cache.layer(layer, key)  # [slots, kv_heads, capacity, d]
        keys[self._rows[:, None], :, self.positions] = key.transpose(1, 2)
        values[self._rows[:, None], :, self.positions] = value.transpose(1, 2)
        groups = query.shape[1] // key.shape[1]
        # Query heads that share a key head stand below each other; no key has to be repeated.
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
        out = outs[0] if len(outs) == 1 else torch.cat(outs)  # [B, kv_heads, groups * T, d]
        return torch.unflatten(out, 2, (groups, query.shape[2])).flatten(1, 2).transpose(1, 2)  # [B, T, heads, d]

    def _read(self, store: Tensor, run: _Run) -> Tensor:
        """Return the keys or values of a run, ``[rows, kv_heads, span, d]``."""
        if self._slots is None:
            return store[run.start : run.stop, :, : run.span]
        return store[self._slots[run.start : run.stop], :, : run.span]

    def _additive_mask(self, run: _Run, groups: int, dtype: torch.dtype) -> Tensor:
        """Return the mask of a run: 0 where a token may attend, minus infinity elsewhere.

        It serves all layers; from a Boolean mask SDPA would make the same in every layer anew.
        """
        if run.mask is None:
            columns = torch.arange(run.span, device=self.positions.device)
            hidden = columns > self.positions[run.start : run.stop, :, None]  # [rows, T, span]
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            run.mask = mask.repeat(1, groups, 1)[:, None]  # [rows, 1, groups * T, span]
        return run.mask

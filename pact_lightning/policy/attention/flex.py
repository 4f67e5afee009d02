"""Shared-prefix attention by torch's FlexAttention: one compiled kernel that skips hidden blocks.

A token is seen by itself and by the tokens after it in the flat row, up to the end of all that goes on from its part
of the tree. That end alone tells the kernel's blocks that are seen wholly, in part or not at all, and the square of the
row is never written out.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from torch.utils._triton import has_triton

from pact_lightning.policy.attention.plan import check_planned
from pact_lightning.policy.prefix_tree import BlockLayout, spans

_SIDE = 128
"""Tokens of a block of the kernel; rows are padded to whole blocks."""
_KEY_BLOCKS = 32
"""Columns of blocks that are looked at together, to bound the memory of making a mask."""
_VARIANTS = 64
"""Most variants of the kernel: with and without gradients, and for equal numbers of blocks and heads."""


class FlexPlan:
    """An :class:`~pact_lightning.policy.attention.plan.AttentionPlan` for blocks on CUDA [D].

    Equal, gradients included, to running every ``prefix + branch`` on its own.

    Args:
        blocks: The blocks in the order of the flat row.
        device: Where the model runs.

    Raises:
        ValueError: There is no block.
    """

    def __init__(self, blocks: Sequence[BlockLayout], device: torch.device | str | None = None) -> None:
        self.tokens = sum(block.tokens for block in blocks)
        self.places = -(-self.tokens // _SIDE) * _SIDE
        """Query places that are computed, padding included."""
        self.mask = _block_mask(_ends(blocks, self.places).to(device))

    @staticmethod
    def available(device: torch.device) -> bool:
        """Return whether the kernel and its backward pass can be compiled for a device."""
        return device.type == "cuda" and has_triton()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Attend in one layer; see :class:`~pact_lightning.policy.attention.plan.AttentionPlan`."""
        del module
        check_planned(query, self.tokens)
        padding = (0, 0, 0, self.places - self.tokens)
        # Laid out alike always, or the kernel would be compiled again.
        q, k, v = (pad(tensor, padding).contiguous() for tensor in (query, key, value))  # [1, heads, places, d]
        out: Tensor = compiled_kernel()(q, k, v, block_mask=self.mask, scale=scaling, enable_gqa=True)
        return out[:, :, : self.tokens].transpose(1, 2)


@cache
def compiled_kernel() -> Callable[..., Any]:
    """Compile FlexAttention for any length; it is never run uncompiled."""
    # A limit of its own, since torch's general one belongs to a thread; older releases have only that.
    limit = {"recompile_limit": _VARIANTS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    compile_: Any = torch.compile  # its types know no keywords by name
    compiled: Callable[..., Any] = compile_(flex_attention, dynamic=True, fullgraph=True, **limit)
    return compiled


def _ends(blocks: Sequence[BlockLayout], places: int) -> Tensor:
    """Return for every place ``[T]`` the end of the tokens that see it."""
    ends = torch.arange(1, places + 1, dtype=torch.int32)  # padding sees itself only
    for span in spans(blocks):
        ends[span.start : span.end] = span.stop
    return ends


def _block_mask(ends: Tensor) -> BlockMask:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        return (key <= query) & (query < ends[key])

    key = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
    first = key[::_SIDE][None]  # first query of every block of queries [1, n]
    full, part = [], []
    for start in range(0, len(ends), _SIDE * _KEY_BLOCKS):
        rows = slice(start, start + _SIDE * _KEY_BLOCKS)
        # Number of queries of every block that see a key.
        end = torch.minimum(ends[rows, None], first + _SIDE)
        seen = (end - torch.maximum(key[rows, None], first)).clamp(min=0)  # [., n]
        seen = torch.unflatten(seen, 0, (-1, _SIDE))  # [., side, n]
        full.append(seen.amin(1) == _SIDE)
        part.append((seen.amax(1) > 0) & ~full[-1])
    # Contiguous, for compiled kernels read the lists as if they were: else each query gets the blocks of another.
    part_lists, full_lists = (_listed(torch.cat(wanted).T.contiguous()) for wanted in (part, full))
    return BlockMask.from_kv_blocks(*part_lists, *full_lists, BLOCK_SIZE=_SIDE, mask_mod=visible)


def _listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """List per row of a matrix of blocks ``[n, n]`` the number of wanted ones, and the columns, wanted ones first."""
    columns = wanted.int().argsort(dim=-1, descending=True, stable=True)
    return wanted.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]

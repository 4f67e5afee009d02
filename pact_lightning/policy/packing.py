"""Packs: blocks of a shared prefix and its branches, laid out as flat rows under a token limit.

``pack_blocks`` makes :class:`Pack` of :class:`Block`; ``fill_bins`` says which blocks share a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PackingMode = Literal["shared_prefix", "rows"]

PREFIX = -1
"""Branch index of a :class:`Read` that scores the prefix itself."""

TokenIds = Sequence[int] | npt.NDArray[np.int64] | Tensor


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Lengths of a block in a flat row: a prefix, then its branches [D].

    Attributes:
        prefix: Tokens of the prefix ``P``, at least 1.
        branches: Tokens ``R_k`` of every branch, each at least 1; none means a plain causal sequence.

    Raises:
        ValueError: A length is below 1.
    """

    prefix: int
    branches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prefix < 1 or any(length < 1 for length in self.branches):
            raise ValueError(
                f"a block needs a prefix and branches of at least one token each, got a prefix of {self.prefix} "
                f"and branches of {list(self.branches)}; drop empty branches before packing"
            )

    @property
    def tokens(self) -> int:
        """Tokens of the block in the flat row, ``P + sum(R_k)``."""
        return self.prefix + sum(self.branches)


@dataclass(frozen=True, slots=True)
class Block:
    """Prefix and the branches that go on from it, such as ``[x | h*]`` and the rollouts of a prompt (METHOD 5.1).

    Attributes:
        prefix: Token ids ``[P]``, ``P >= 1``.
        branches: Token ids ``[R_k]`` of every branch, ``R_k >= 1``.
        read_prefix: Whether the prefix's own tokens are scored as well.
    """

    prefix: TokenIds
    branches: Sequence[TokenIds] = ()
    read_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Tokens of one branch, or of a prefix, and the places of a pack's flat row that predict them.

    Attributes:
        block: Index of the block in the list that was packed.
        branch: Index of the branch in its block, or :data:`PREFIX`.
        predictors: Flat index of the hidden state that predicts each token ``[R]``: the token before it in its own
            sequence, which for a branch's first token is the last one of the prefix. A prefix has ``R = P - 1``:
            nothing predicts its first token.
        targets: The predicted token ids ``[R]``.
    """

    block: int
    branch: int
    predictors: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Pack:
    """One forward: a flat row of blocks.

    Attributes:
        ids: Token ids ``[T]``.
        positions: Position of every token in its own sequence ``[T]``.
        layouts: The blocks' lengths in the flat row, for
            :class:`~pact_lightning.policy.attention.plan.SharedPrefixPlan`.
        reads: The tokens to score, in the order of the flat row.
    """

    ids: Tensor
    positions: Tensor
    layouts: tuple[BlockLayout, ...]
    reads: tuple[Read, ...]

    @property
    def tokens(self) -> int:
        """Length ``T`` of the flat row."""
        return self.ids.shape[0]


def pack_blocks(blocks: Sequence[Block], max_tokens: int, mode: PackingMode = "shared_prefix") -> list[Pack]:
    """Pack blocks under a token limit into few packs of about the same length, the longest pack first [D].

    ``shared_prefix`` stores a prefix once for all its branches; a block over the limit is split by branches, with
    the prefix repeated. ``rows`` is the plain fallback: every ``prefix + branch`` is a sequence of its own. Both read
    the same tokens once and give the same values and gradients, whatever the limit: a sequence that is over it by
    itself makes a pack of its own. In a pack the blocks keep their order. The longest pack is the first to be run, so
    that memory which does not suffice runs out at once, and not after many shorter packs.

    Args:
        blocks: The blocks; each must have something to read.
        max_tokens: Most tokens of a pack of more than one sequence (``max_tokens_per_forward``).
        mode: ``shared_prefix`` or ``rows``.

    Raises:
        ValueError: A block is empty or has nothing to read.
    """
    if mode not in ("shared_prefix", "rows"):
        raise ValueError(f"unknown packing mode {mode!r}; use 'shared_prefix' or 'rows'")
    pieces: list[_Piece] = []
    for index, block in enumerate(blocks):
        piece = _piece(index, block)
        if mode == "rows":
            pieces += _one_by_one(piece)
        elif piece.tokens > max_tokens and piece.branches:
            pieces += _split(piece, max_tokens)
        else:
            pieces.append(piece)
    bins = fill_bins([piece.tokens for piece in pieces], max_tokens)
    packs = [_close([pieces[number] for number in found]) for found in bins]
    return sorted(packs, key=lambda pack: -pack.tokens)  # stable: the order of a batch's packs is always the same


@dataclass(frozen=True, slots=True)
class _Piece:
    """Prefix of a block with some of its branches."""

    block: int
    prefix: Tensor
    branches: tuple[tuple[int, Tensor], ...]  # (index in the block, ids)
    read_prefix: bool
    merged: bool = False  # prefix and the one branch run as a plain sequence

    @property
    def tokens(self) -> int:
        return self.prefix.shape[0] + sum(ids.shape[0] for _, ids in self.branches)


def _piece(index: int, block: Block) -> _Piece:
    if not block.branches and not block.read_prefix:
        raise ValueError(f"block {index} has no branches and its prefix is not read: there is nothing to score in it")
    prefix = _tensor(block.prefix)
    branches = tuple(enumerate(_tensor(branch) for branch in block.branches))
    if not len(prefix):
        raise ValueError(f"block {index} has an empty prefix; a prefix needs at least one token")
    for branch, ids in branches:
        if not len(ids):
            raise ValueError(f"branch {branch} of block {index} is empty; drop it before packing")
    return _Piece(index, prefix, branches, block.read_prefix)


def _tensor(ids: TokenIds) -> Tensor:
    return torch.as_tensor(ids if isinstance(ids, Tensor) else np.asarray(ids, dtype=np.int64), dtype=torch.long)


def _one_by_one(piece: _Piece) -> Iterator[_Piece]:
    if not piece.branches:
        yield piece
    for n, branch in enumerate(piece.branches):
        yield _Piece(piece.block, piece.prefix, (branch,), piece.read_prefix and n == 0, merged=True)


def _split(piece: _Piece, max_tokens: int) -> Iterator[_Piece]:
    """Split a block into parts with as many branches as fit, the prefix in each; the first part reads it."""
    room = max_tokens - piece.prefix.shape[0]
    for number, found in enumerate(fill_bins([ids.shape[0] for _, ids in piece.branches], room)):
        branches = tuple(piece.branches[branch] for branch in found)
        yield _Piece(piece.block, piece.prefix, branches, piece.read_prefix and number == 0)


def _close(pieces: Sequence[_Piece]) -> Pack:
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    layouts: list[BlockLayout] = []
    reads: list[Read] = []
    start = 0
    for piece in pieces:
        prefix = piece.prefix.shape[0]
        lengths = tuple(branch.shape[0] for _, branch in piece.branches)
        ids += [piece.prefix, *(branch for _, branch in piece.branches)]
        positions += [torch.arange(prefix), *(torch.arange(prefix, prefix + length) for length in lengths)]
        layouts.append(BlockLayout(piece.tokens) if piece.merged else BlockLayout(prefix, lengths))
        reads += _reads(piece, start)
        start += piece.tokens
    return Pack(torch.cat(ids), torch.cat(positions), tuple(layouts), tuple(reads))  # [T], [T]


def _reads(piece: _Piece, start: int) -> Iterator[Read]:
    prefix = piece.prefix.shape[0]
    if piece.read_prefix:
        yield Read(piece.block, PREFIX, torch.arange(start, start + prefix - 1), piece.prefix[1:])
    last_of_prefix = start + prefix - 1
    first = start + prefix
    for branch, ids in piece.branches:
        length = ids.shape[0]
        predictors = torch.arange(first - 1, first + length - 1)  # [R_k]
        predictors[0] = last_of_prefix
        yield Read(piece.block, branch, predictors, ids)
        first += length


def fill_bins(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Fill few bins: first fit from the largest on for their number, then as evenly as that number allows [D].

    Args:
        sizes: Size of every item.
        limit: Most that a bin of several items holds.

    Returns:
        The items of every bin by index, in order; the bins by their first item.
    """
    largest_first = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    bins = _first_fit(largest_first, sizes, limit)
    even = _evenly(largest_first, sizes, len(bins))
    if all(len(found) == 1 or sum(sizes[item] for item in found) <= limit for found in even):
        bins = even
    return sorted(sorted(found) for found in bins)


def _first_fit(items: Sequence[int], sizes: Sequence[int], limit: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for item in items:
        fitting = next((number for number, free in enumerate(room) if free >= sizes[item]), None)
        if fitting is None:
            fitting = len(bins)
            bins.append([])
            room.append(limit)
        bins[fitting].append(item)
        room[fitting] -= sizes[item]
    return bins


def _evenly(items: Sequence[int], sizes: Sequence[int], count: int) -> list[list[int]]:
    """Put each item into the emptiest bin so far."""
    bins: list[list[int]] = [[] for _ in range(count)]
    used = [0] * count
    for item in items:
        emptiest = used.index(min(used))
        bins[emptiest].append(item)
        used[emptiest] += sizes[item]
    return bins

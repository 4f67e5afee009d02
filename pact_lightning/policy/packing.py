"""Packs: sequences laid out as trees in flat rows under a token limit; what they begin with alike stands there once.

``pack_blocks`` makes :class:`Pack` of :class:`Block`; ``fill_bins`` says which blocks share a row, and
:mod:`~pact_lightning.policy.prefix_tree` what they have in common.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pact_lightning.policy.prefix_tree import BlockLayout, SharedBeginnings

PackingMode = Literal["shared_prefix", "rows"]

PREFIX = -1
"""Branch index of a :class:`Read` that scores the prefix itself."""

TokenIds = Sequence[int] | npt.NDArray[np.int64] | Tensor


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
    """One forward: a flat row of trees.

    Attributes:
        ids: Token ids ``[T]``.
        positions: Position of every token in its own sequence ``[T]``.
        layouts: The trees' lengths in the flat row, for an attention plan.
        reads: The tokens to score, by block and branch; what is shared is read by each that shares it.
        row_tokens: Tokens of the same sequences as plain rows.
    """

    ids: Tensor
    positions: Tensor
    layouts: tuple[BlockLayout, ...]
    reads: tuple[Read, ...]
    row_tokens: int

    @property
    def tokens(self) -> int:
        """Length ``T`` of the flat row."""
        return self.ids.shape[0]


def pack_blocks(blocks: Sequence[Block], max_tokens: int, mode: PackingMode = "shared_prefix") -> list[Pack]:
    """Pack blocks under a token limit into few packs of about the same length, the longest pack first [D].

    ``shared_prefix`` stores once what sequences of a pack begin with alike, where that is worth it: the prefix of a
    block's branches, and also what different blocks have in common, such as the system turn with its tools, or what
    rollouts sampled alike. A block over the limit is split by branches, with the prefix repeated. ``rows`` is the plain
    fallback: every ``prefix + branch`` is a sequence of its own. Both read the same tokens once and give the same
    values and gradients, whatever the limit: a sequence that is over it by itself makes a pack of its own. In a pack
    the blocks keep their order, but for those that share something with an earlier one. The longest pack is the
    first to be run, so that memory which does not suffice runs out at once, and not after many shorter packs.

    Args:
        blocks: The blocks; each must have something to read.
        max_tokens: Most tokens of a pack of more than one sequence (``max_tokens_per_forward``).
        mode: ``shared_prefix`` or ``rows``.

    Raises:
        ValueError: A block is empty or has nothing to read.
    """
    if mode not in ("shared_prefix", "rows"):
        raise ValueError(f"unknown packing mode {mode!r}; use 'shared_prefix' or 'rows'")
    sequences = [sequence for index, block in enumerate(blocks) for sequence in _sequences(index, block)]
    shared = SharedBeginnings([sequence.ids for sequence in sequences], share=mode == "shared_prefix")

    def fill(parts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Fill bins with lists of sequences; a bin is a list of sequences too."""

        def size(chosen: Sequence[int]) -> int:
            return shared.tokens([sequence for number in chosen for sequence in parts[number]])

        bins = fill_bins(len(parts), size, max_tokens)
        return [[sequence for number in found for sequence in parts[number]] for found in bins]

    pieces: list[list[int]] = []
    for _, found in groupby(range(len(sequences)), key=lambda number: sequences[number].block):
        block = list(found)
        if mode == "shared_prefix" and shared.tokens(block) <= max_tokens:
            pieces.append(block)
        else:
            pieces += [[number] for number in block] if mode == "rows" else fill([[number] for number in block])
    packs = [_close(shared, sequences, chosen) for chosen in fill(pieces)]
    return sorted(packs, key=lambda pack: -pack.tokens)  # stable: the order of a batch's packs is always the same


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A block's prefix with one of its branches, and what is read of it: branch, first token, end."""

    block: int
    ids: npt.NDArray[np.int64]
    reads: tuple[tuple[int, int, int], ...]


def _sequences(index: int, block: Block) -> Iterator[_Sequence]:
    if not block.branches and not block.read_prefix:
        raise ValueError(f"block {index} has no branches and its prefix is not read: it has nothing to score")
    prefix = _array(block.prefix)
    if not len(prefix):
        raise ValueError(f"block {index} has an empty prefix; a prefix needs at least one token")
    read_prefix = ((PREFIX, 1, len(prefix)),) if block.read_prefix else ()
    if not block.branches:
        yield _Sequence(index, prefix, read_prefix)
    for branch, ids in enumerate(map(_array, block.branches)):
        if not len(ids):
            raise ValueError(f"branch {branch} of block {index} is empty; remove it before packing")
        whole = np.concatenate([prefix, ids])
        read = (branch, len(prefix), len(whole))
        yield _Sequence(index, whole, (read,) if branch else (*read_prefix, read))


def _array(ids: TokenIds) -> npt.NDArray[np.int64]:
    return np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids, dtype=np.int64)


def _close(shared: SharedBeginnings, sequences: Sequence[_Sequence], chosen: Sequence[int]) -> Pack:
    chosen = sorted(chosen)
    tree = shared.tree(chosen)
    starts = np.cumsum([0, *(part.length for part in tree.parts)])
    reads: list[Read] = []
    for number in chosen:
        sequence = sequences[number]
        path = ((starts[part], tree.parts[part].length) for part in tree.path(number))
        places = np.concatenate([np.arange(start, start + length) for start, length in path])
        for branch, begin, end in sequence.reads:
            predictors = torch.from_numpy(places[begin - 1 : end - 1])
            reads.append(Read(sequence.block, branch, predictors, torch.from_numpy(sequence.ids[begin:end])))
    return Pack(
        torch.from_numpy(np.concatenate([sequences[part.sequence].ids[part.begin : part.end] for part in tree.parts])),
        torch.cat([torch.arange(part.begin, part.end) for part in tree.parts]),
        tree.layouts(),
        tuple(reads),
        sum(len(sequences[number].ids) for number in chosen),
    )


def fill_bins(count: int, size_of: Callable[[Sequence[int]], int], limit: int) -> list[list[int]]:
    """Fill few bins: from the largest item on where it adds least, then as evenly as that number allows [D].

    Args:
        count: Number of items.
        size_of: Size of some items together, by index.
        limit: Most that a bin of several items holds.

    Returns:
        The items of every bin by index, in order; the bins by their first item.
    """
    if count and size_of(range(count)) <= limit:
        return [list(range(count))]
    sizes = [size_of([item]) for item in range(count)]
    largest_first = sorted(range(count), key=lambda item: (-sizes[item], item))
    bins: list[list[int]] = []
    used: list[int] = []
    for item in largest_first:
        filled = [size_of([*found, item]) for found in bins]
        fitting = [number for number in range(len(bins)) if filled[number] <= limit]
        if fitting:
            best = min(fitting, key=lambda number: filled[number] - used[number])
            bins[best].append(item)
            used[best] = filled[best]
        else:
            bins.append([item])
            used.append(sizes[item])
    even = [found for found in _evenly(largest_first, size_of, len(bins)) if found]
    filled = [size_of(found) for found in even]
    fits = all(len(found) == 1 or size <= limit for found, size in zip(even, filled, strict=True))
    if fits and sum(filled) <= sum(used):
        bins = even
    return sorted(sorted(found) for found in bins)


def _evenly(items: Sequence[int], size_of: Callable[[Sequence[int]], int], count: int) -> list[list[int]]:
    """Put each item into the bin that is emptiest with it."""
    bins: list[list[int]] = [[] for _ in range(count)]
    for item in items:
        filled = [size_of([*found, item]) for found in bins]
        bins[filled.index(min(filled))].append(item)
    return bins

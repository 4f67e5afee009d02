"""Trees of tokens: what sequences have in common at their beginning is stored once, and run once.

``BlockLayout`` is a tree's lengths, ``spans`` its parts in the flat row, ``SharedBeginnings`` finds the trees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Union

import numpy as np
import numpy.typing as npt

_WORTH = 32
"""A beginning is shared if this times the tokens that it saves is at least what stands behind it [D].

Attention to one part more costs every token behind it a few reads and writes per layer, a token that is run once more
costs its products with all weights: at hidden size 512 more than a hundred times as much.
"""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Lengths of a tree in a flat row: a prefix, then its branches, each followed by its own [D].

    Attributes:
        prefix: Tokens of the prefix ``P``, at least 1.
        branches: Every branch, a tree of its own or only its tokens ``R_k``, at least 1; none means a plain causal
            sequence.
        tokens: Tokens of the tree in the flat row.

    Raises:
        ValueError: A length is below 1.
    """

    prefix: int
    branches: tuple[Union[int, "BlockLayout"], ...] = ()
    tokens: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        lengths = [branch if isinstance(branch, int) else branch.tokens for branch in self.branches]
        if self.prefix < 1 or any(length < 1 for length in lengths):
            raise ValueError(
                f"a block needs a prefix and branches of at least one token each, got a prefix of {self.prefix} "
                f"and branches of {lengths}; drop empty branches before packing"
            )
        object.__setattr__(self, "tokens", self.prefix + sum(lengths))


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a tree in the flat row; its tokens see themselves, causally, and all of its path.

    Attributes:
        start: Place of its first token.
        length: Its tokens.
        stop: End of all that goes on from it, which stands right behind it.
        path: The spans that it goes on from, the tree's beginning first.
    """

    start: int
    length: int
    stop: int
    path: tuple["Span", ...] = ()

    @property
    def end(self) -> int:
        """End of its own tokens."""
        return self.start + self.length

    @property
    def before(self) -> int:
        """Tokens of its path."""
        return sum(span.length for span in self.path)


def spans(layouts: Sequence[BlockLayout]) -> Iterator[Span]:
    """List the parts of trees in the order of the flat row.

    Raises:
        ValueError: There is no tree.
    """
    if not layouts:
        raise ValueError("an attention plan needs at least one block")
    start = 0
    waiting: list[tuple[int | BlockLayout, tuple[Span, ...]]] = [(layout, ()) for layout in reversed(layouts)]
    while waiting:
        found, path = waiting.pop()
        tree = BlockLayout(found) if isinstance(found, int) else found
        span = Span(start, tree.prefix, start + tree.tokens, path)
        yield span
        start = span.end
        waiting += [(branch, (*path, span)) for branch in reversed(tree.branches)]


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a tree: tokens ``begin`` to ``end`` of a sequence, and of all that go on from it.

    Attributes:
        sequence: Index of the sequence.
        begin: Position of its first token.
        end: Position after its last one.
        parent: Index of the part that it goes on from, or ``None``.
    """

    sequence: int
    begin: int
    end: int
    parent: int | None

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Trees of some sequences.

    Attributes:
        parts: The parts in the order of the flat row.
        last: Index of the part in which each sequence ends, by the index of the sequence.
    """

    parts: list[Part]
    last: dict[int, int]

    @property
    def tokens(self) -> int:
        """Tokens of the flat row."""
        return sum(part.length for part in self.parts)

    def layouts(self) -> tuple[BlockLayout, ...]:
        """Return the lengths, by tree."""
        branches: list[list[int | BlockLayout]] = [[] for _ in self.parts]
        roots: list[BlockLayout] = []
        for number, part in reversed(list(enumerate(self.parts))):
            found = BlockLayout(part.length, tuple(reversed(branches[number])))
            if part.parent is None:
                roots.append(found)
            else:
                branches[part.parent].append(found if found.branches else part.length)
        return tuple(reversed(roots))

    def path(self, sequence: int) -> list[int]:
        """Return the indices of the parts that a sequence is made of."""
        found = []
        number: int | None = self.last[sequence]
        while number is not None:
            found.append(number)
            number = self.parts[number].parent
        return found[::-1]


class SharedBeginnings:
    """Beginnings that sequences have in common.

    Args:
        sequences: Token ids of each sequence ``[L]``.
        share: Whether anything is to be shared; without it every sequence is a tree of its own.
    """

    def __init__(self, sequences: Sequence[npt.NDArray[np.int64]], *, share: bool) -> None:
        # In the order of a dictionary, what any two have in common is the least of what neighbours between them have.
        self._share = share
        keys = [ids.astype(">i8").tobytes() for ids in sequences]
        self._sorted = sorted(range(len(keys)), key=keys.__getitem__)
        self._rank = {sequence: rank for rank, sequence in enumerate(self._sorted)}
        self._lengths = [len(ids) for ids in sequences]
        neighbours = pairwise(sequences[number] for number in self._sorted)
        self._common = [0, *(_in_common(left, right) if share else 0 for left, right in neighbours)]

    def tokens(self, chosen: Sequence[int]) -> int:
        """Count the tokens of the trees of some of the sequences."""
        return self.tree(chosen).tokens if self._share else sum(self._lengths[sequence] for sequence in chosen)

    def tree(self, chosen: Sequence[int]) -> PrefixTree:
        """Make the trees of some of the sequences: beginnings are shared where that is worth it.

        A sequence that is the beginning of another one runs as a part of that.

        Args:
            chosen: Their indices; the trees keep this order, by the first sequence of each.
        """
        place = {sequence: number for number, sequence in enumerate(chosen)}
        ranks = sorted(self._rank[sequence] for sequence in chosen)
        common = [min(self._common[left + 1 : right + 1]) for left, right in pairwise(ranks)]
        sequences = [self._sorted[rank] for rank in ranks]
        whole = [self._lengths[sequence] != shared for sequence, shared in zip(sequences, [*common, 0], strict=True)]
        leaves = [rank for rank, kept in zip(ranks, whole, strict=True) if kept]
        first = [place[self._sorted[rank]] for rank in leaves]
        parts, ends = self._grow(leaves, first)
        last: dict[int, int] = {}
        leaf = 0
        for sequence, kept in zip(sequences, whole, strict=True):
            last[sequence] = self._part_of(parts, ends[leaf], self._lengths[sequence])
            leaf += kept
        return PrefixTree(parts, last)

    def _grow(self, leaves: Sequence[int], place: Sequence[int]) -> tuple[list[Part], list[int]]:
        """Return the parts, and for every leaf the one in which it ends."""
        lengths = [self._lengths[self._sorted[rank]] for rank in leaves]
        common = [0, *(min(self._common[left + 1 : right + 1]) for left, right in pairwise(leaves))]
        parts: list[Part] = []
        ends = [0] * len(leaves)
        waiting: list[tuple[int, int, int, int | None]] = [(0, len(leaves), 0, None)]
        while waiting:
            low, high, begin, parent = waiting.pop()
            end = min(common[low + 1 : high], default=lengths[low])
            cuts = [low, *(number for number in range(low + 1, high) if common[number] == end), high]
            groups = sorted(pairwise(cuts), key=lambda group: -min(place[slice(*group)]))  # the first on top
            saved = (len(groups) - 1) * (end - begin)
            behind = sum(lengths[low:high]) - sum(common[low + 1 : high]) - end
            if _WORTH * saved < behind:
                waiting += [(*group, begin, parent) for group in groups]
                continue
            ends[low:high] = [len(parts)] * (high - low)
            parts.append(Part(self._sorted[leaves[low]], begin, end, parent))
            if high - low > 1:
                waiting += [(*group, end, len(parts) - 1) for group in groups]
        return parts, ends

    @staticmethod
    def _part_of(parts: Sequence[Part], last: int, length: int) -> int:
        """Return the part that holds the last of so many tokens, on the path to a part."""
        while (parent := parts[last].parent) is not None and parts[last].begin >= length:
            last = parent
        return last


def _in_common(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> int:
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    return int(differ.argmax()) if differ.any() else length

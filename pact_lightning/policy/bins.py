"""Items of unequal size in as few and as equal bins as two passes find."""

from collections.abc import Sequence


def fill_bins(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Sorted first fit for the number of bins, then the same number filled evenly where that is possible [D].

    Args:
        sizes: Size of every item, none over the limit.
        limit: What a bin holds.

    Returns:
        The items of every bin by index, in order; bins by their first item.
    """
    largest_first = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    bins = _first_fit(largest_first, sizes, limit)
    even = _evenly(largest_first, sizes, len(bins))
    if all(sum(sizes[item] for item in found) <= limit for found in even):
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
    """Each item into the emptiest bin so far."""
    bins: list[list[int]] = [[] for _ in range(count)]
    used = [0] * count
    for item in items:
        emptiest = used.index(min(used))
        bins[emptiest].append(item)
        used[emptiest] += sizes[item]
    return bins

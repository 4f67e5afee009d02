"""Names made of two syllables; every split has its own words, so that no held-out name was ever seen in training.

Each kind of name has syllables of its own, as place names and surnames do in many languages.
"""

import hashlib
import itertools
import random
from functools import cache

SPLITS: tuple[str, ...] = ("train", "validation", "test", "longer")
NAME_KINDS: tuple[str, ...] = ("place", "work", "organisation", "first", "last")

_STARTS = {"place": "aor", "work": "eil", "organisation": "oun", "first": "ai", "last": "ues"}
"""Two vowels and a final consonant; first names have none."""
_ENDS = {
    "place": ("a", "um"),
    "work": ("e", "is"),
    "organisation": ("o", "ex"),
    "first": ("i", "an"),
    "last": ("u", "er"),
}
_SPLIT_OF_BUCKET = ("train",) * 5 + ("validation", "test", "longer")


@cache
def syllables(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First and second syllables of a kind of name; no syllable belongs to two kinds."""
    vowels, coda = _STARTS[kind][:2], _STARTS[kind][2:]
    starts = tuple(consonant + vowel + coda for consonant in "BDFGHKLMNPRSTVZJ" for vowel in vowels)
    ends = tuple(consonant + rest for consonant in "bdfgklmnprstvz" for rest in _ENDS[kind])
    return starts, ends


def _bucket(word: str) -> str:
    digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
    return _SPLIT_OF_BUCKET[digest[0] % len(_SPLIT_OF_BUCKET)]


@cache
def words(split: str, kind: str) -> tuple[str, ...]:
    """All words of a split and kind; disjoint between splits.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the bundled world has no split {split!r}; choose one of {', '.join(SPLITS)}")
    every = (start + end for start, end in itertools.product(*syllables(kind)))
    return tuple(word for word in every if _bucket(word) == split)


def draw_words(split: str, kind: str, count: int, rng: random.Random) -> list[str]:
    """Distinct words of a split and kind."""
    return rng.sample(words(split, kind), count)

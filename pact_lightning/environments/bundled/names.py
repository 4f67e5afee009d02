"""Names made of syllables; every split has its own words, so that no held-out name was ever seen in training."""

import hashlib
import itertools
import random
from functools import cache

SPLITS: tuple[str, ...] = ("train", "validation", "test", "longer")

_FIRST = [c + v + e for c, v, e in zip("BDFGHKLMNPRSTVZJ" * 3, "aeiou" * 10, ["", "l", "n", "r"] * 12, strict=False)]
_REST = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_SPLIT_OF_BUCKET = ("train",) * 5 + ("validation", "test", "longer")


def _bucket(word: str) -> str:
    digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
    return _SPLIT_OF_BUCKET[digest[0] % len(_SPLIT_OF_BUCKET)]


@cache
def words(split: str) -> tuple[str, ...]:
    """All name words of a split: two syllables each, disjoint between splits.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the bundled world has no split {split!r}; choose one of {', '.join(SPLITS)}")
    every = (a + b for a, b in itertools.product(sorted(set(_FIRST)), _REST))
    return tuple(word for word in every if _bucket(word) == split)


def syllables() -> tuple[str, ...]:
    """The pieces that names are made of, for the tokenizer of the bundled policy."""
    return (*sorted(set(_FIRST)), *_REST)


def draw_words(split: str, count: int, rng: random.Random) -> list[str]:
    """Distinct words of a split."""
    return rng.sample(words(split), count)

"""Stateless seeds: a random draw depends on its purpose alone, never on earlier draws.

A resumed run therefore repeats the uninterrupted one without any saved state of a generator.
"""

import hashlib
import random

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed from the parts that name a draw, such as ``(seed, phase, task id, sample, turn)``.

    >>> derive_seed(0, "train", 3) == derive_seed(0, "train", 3)
    True
    >>> derive_seed(0, 1) == derive_seed(0, "1")
    False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_random(*parts: int | str) -> random.Random:
    """Return a Python generator for one purpose."""
    return random.Random(derive_seed(*parts))


def numpy_random(*parts: int | str) -> np.random.Generator:
    """Return a numpy generator for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))

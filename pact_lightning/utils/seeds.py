"""Stateless seeds: every random draw is a function of what it is for, never of what was drawn before.

A resumed run therefore repeats the uninterrupted one: no generator's state has to be saved.
"""

import hashlib
import random

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the things that name a draw, such as ``(seed, phase, task id, sample, turn)``.

    >>> derive_seed(0, "train", 3) == derive_seed(0, "train", 3)
    True
    >>> derive_seed(0, 1) == derive_seed(0, "1")
    False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_random(*parts: int | str) -> random.Random:
    """A Python generator for one purpose."""
    return random.Random(derive_seed(*parts))


def numpy_random(*parts: int | str) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))

"""A module whose public functions become tools, in the order in which they stand here."""

from functools import cache
from json import dumps  # noqa: F401  # an imported function is no tool of this module


def zebra(stripes: int) -> int:
    """Doubles.

    Args:
        stripes: How many.
    """
    return _twice(stripes)


@cache
def ant() -> str:
    """Is small."""
    return "small"


def _twice(number):
    return 2 * number

"""Calls of BFCL's calculator that would take hours and all memory, and stop every rollout of the process with them.

Python's big numbers cannot be interrupted, so the engine's time limit is of no help. Everything else is let through.
"""

from collections.abc import Mapping
from typing import Any

MAX_PRECISION = 10_000
"""Digits that ``logarithm`` and ``square_root`` may be asked for [D]; BFCL itself has no bound."""
_MAX_BITS = 20_000
"""Above this, a whole number has more digits than Python writes out (4,300), so that the call fails in any case."""


def affordable(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call, unless it is one that would not come back.

    Args:
        name: The function.
        arguments: Its arguments.

    Returns:
        The arguments; a number of decimal places far below zero is raised to one that gives the same result, 0.

    Raises:
        ValueError: The call is too costly; the message is the one that BFCL gives after it has done the work, or, for
            a precision over :data:`MAX_PRECISION`, one of our own.
    """
    if name == "power":
        _check_power(arguments.get("base"), arguments.get("exponent"))
    elif name in ("logarithm", "square_root"):
        precision = arguments.get("precision")
        if isinstance(precision, int | float) and precision > MAX_PRECISION:
            raise ValueError(f"precision must be at most {MAX_PRECISION}")
    elif name == "round_number" and isinstance(places := arguments.get("decimal_places"), int):
        return {**arguments, "decimal_places": max(places, -_MAX_BITS)}
    return arguments


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > _MAX_BITS:
        raise ValueError(
            "Exceeds the limit (4300 digits) for integer string conversion; "
            "use sys.set_int_max_str_digits() to increase the limit"
        )

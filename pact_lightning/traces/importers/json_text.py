"""Reads JSON that comes from outside, and says in one clause why a text is none that can be kept."""

import json
from typing import Any

MAX_DEPTH = 100
"""Values nested deeper are refused: what later copies or writes them might not be able to [D]."""

MAX_DIGITS = 1000
"""Python itself refuses whole numbers of more than 4,300 digits, and not in words that help [D]."""


def load_json(text: str) -> Any:
    """Reads one JSON value that can be written again.

    Args:
        text: The text.

    Returns:
        The value.

    Raises:
        ValueError: The text is not JSON, or holds what JSON or UTF-8 cannot: ``NaN``, a number beyond a float's range,
            half of a surrogate pair, more than :data:`MAX_DEPTH` levels. The message continues "the text ...".

    >>> load_json('{"a": NaN}')
    Traceback (most recent call last):
    ...
    ValueError: is not valid JSON: NaN is no JSON value
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_int=_whole_number)
        check_storable(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep") from error
    return value


def check_storable(value: Any) -> None:
    """Checks that a JSON value can be written as JSON in UTF-8.

    Args:
        value: A value made of dictionaries, lists, strings, numbers, booleans and ``None``.

    Raises:
        ValueError: It cannot; the message continues "the value ...".
    """
    if _deeper(value, MAX_DEPTH):
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a character (an unpaired surrogate escape)") from error
    except TypeError as error:
        raise ValueError(f"holds what JSON cannot: {error}") from error
    except ValueError as error:
        raise ValueError("holds a number that is too large") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"is not valid JSON: {name} is no JSON value")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _deeper(value: Any, levels: int) -> bool:
    """Whether the value has more levels; looks no deeper than that, whatever the value."""
    if not isinstance(value, dict | list | tuple):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inner)

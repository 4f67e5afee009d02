"""JSON that somebody else wrote, read strictly: what Python's reader lets pass and nothing later can use is refused."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 100
"""Deeper values are read only where the stack happens to be short; nothing later could rely on them."""
_UNPAIRED = re.compile("[\ud800-\udfff]")


class JsonTextError(ValueError):
    """A text or value is no JSON that can be used; the message says why, to stand after the name of the place."""


def parse_json(text: str) -> Any:
    """Reads one JSON value.

    Refused beyond the syntax: ``NaN`` and ``Infinity``, numbers beyond a float's range, integers of more digits than
    Python converts, a key that stands twice in one object, values nested more than :data:`MAX_DEPTH` deep, and half of
    a surrogate pair, which has no UTF-8.

    Args:
        text: The whole text.

    Raises:
        JsonTextError: It is not such a value.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    value, end = parse_json_at(text, _after_space(text, 0))
    end = _after_space(text, end)
    if end < len(text):
        raise JsonTextError(f"is not valid JSON: something follows the value at character {end}")
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """Reads the JSON value that starts at a character, as :func:`parse_json` does; more text may follow.

    Args:
        text: The text.
        start: Where the value starts.

    Returns:
        The value, and the character after it.

    Raises:
        JsonTextError: No such value starts there.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonTextError(f"is not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos}") from error
    except RecursionError as error:
        raise JsonTextError(_TOO_DEEP) from error
    except JsonTextError:
        raise
    except ValueError as error:  # Python's own, for an integer of thousands of digits
        raise JsonTextError("holds an integer of too many digits; write it as a string") from error
    problem = _problem(value)
    if problem:
        raise JsonTextError(problem)
    return value, end


def refused_end(text: str, start: int) -> int | None:
    """Where a value ends that :func:`parse_json_at` refuses, so that what follows it can be read.

    Args:
        text: The text.
        start: Where the value starts.

    Returns:
        The character after it; ``None`` where the syntax itself is broken, or the value too deep for the stack.
    """
    try:
        return _SYNTAX.raw_decode(text, start)[1]
    except (json.JSONDecodeError, RecursionError):
        return None


def check_json(value: Any) -> None:
    """Checks a value that came from elsewhere than :func:`parse_json`: can it be written as JSON in UTF-8?

    Args:
        value: A value of dictionaries, lists, tuples, strings, numbers, booleans and ``None``.

    Raises:
        JsonTextError: It holds anything else, a number that is not finite or has more digits than Python converts, half
            of a surrogate pair, or more than :data:`MAX_DEPTH` levels.

    >>> check_json({"a": {1, 2}})
    Traceback (most recent call last):
    ...
    pact_lightning.utils.json_text.JsonTextError: holds what JSON cannot: Object of type set is not JSON serializable
    """
    problem = _problem(value)
    if problem:
        raise JsonTextError(problem)
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise JsonTextError(f"holds what JSON cannot: {error}") from error
    except ValueError as error:
        raise JsonTextError("holds a number that is not finite or of too many digits") from error


_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _no_constant(name: str) -> Any:
    raise JsonTextError(f"is not valid JSON: {name} is no JSON value")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonTextError(f"holds a number that is too large: {digits:.40}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonTextError(f"holds an object with the key {twice[:60]!r} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float)
_SYNTAX = json.JSONDecoder(parse_int=str)  # no limit of digits


def _problem(value: Any) -> str:
    """Depth and halves of characters, with a stack of our own: the file decides how deep it is."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            if _UNPAIRED.search(item):
                return "holds half of a character (an unpaired surrogate escape)"
        elif isinstance(item, dict | list | tuple):
            if depth > MAX_DEPTH:
                return _TOO_DEEP
            inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            stack.extend((entry, depth + 1) for entry in inner)
    return ""

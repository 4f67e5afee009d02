"""Strict reader of JSON that somebody else wrote: it refuses what Python's reader accepts and nothing later can use."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 100
"""Deepest nesting. Deeper values can be read only where the call stack happens to be short."""
_OPENING = re.compile(r"[ \t\n\r]*[{\[]")
_UNPAIRED = re.compile("[\ud800-\udfff]")


class JsonTextError(ValueError):
    """Error of a text or value that is no usable JSON; the message continues a sentence that names the place.

    Attributes:
        brief: The message for a policy: it quotes nothing of the text.
    """

    def __init__(self, problem: str, brief: str = "") -> None:
        super().__init__(problem)
        self.brief = brief or problem


def parse_json(text: str) -> Any:
    """Read one JSON value.

    Refused beyond the syntax: ``NaN`` and ``Infinity``, numbers beyond a float's range, integers of more digits than
    Python converts, a key that stands twice in one object, values nested more than :data:`MAX_DEPTH` deep, and half of
    a surrogate pair, which has no UTF-8.

    Args:
        text: The whole text.

    Raises:
        JsonTextError: The text is not such a value.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        value = decode_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            problem = f"is not valid JSON: something follows the value at character {error.pos}"
            raise JsonTextError(problem, f"is not valid JSON: Extra data at character {error.pos}") from error
        raise JsonTextError(f"is not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos}") from error
    check_text(value)
    return value


def decode_json(text: str) -> Any:
    """Decode a JSON text whose parts are then passed to :func:`check_text`, each on its own.

    Args:
        text: The whole text.

    Returns:
        The value. A :class:`JsonTextError` stands in it for each part that is refused.

    Raises:
        json.JSONDecodeError: The syntax is broken.
        JsonTextError: The text is nested too deeply, or holds an integer of too many digits.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python's own, for an integer of thousands of digits
        problem = "holds an integer with too many digits; write it as a string"
        raise JsonTextError(problem, f"is not valid JSON: {error}") from error


def json_end(text: str, start: int) -> int | None:
    """Find the end of a JSON object or list in a text, however the text goes on.

    Args:
        text: The text.
        start: Place at which it begins; white space may come first.

    Returns:
        The place behind it; ``None`` if none of right syntax begins there.

    >>> json_end('{"a": "}"} and more', 0)
    10
    """
    opening = _OPENING.match(text, start)
    if opening is None:
        return None
    try:
        return _DECODER.raw_decode(text, opening.end() - 1)[1]
    except (ValueError, RecursionError):
        return None


def check_text(value: Any) -> None:
    """Check a value of :func:`decode_json`.

    Args:
        value: The value, or a part of it.

    Raises:
        JsonTextError: It holds a refused part or half of a surrogate pair, or is nested too deeply.
    """
    # With a stack of our own: the file decides how deep the value is.
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, JsonTextError):
            raise item
        if isinstance(item, str):
            if _UNPAIRED.search(item):
                raise JsonTextError("holds half of a character (an unpaired surrogate escape)")
        elif isinstance(item, dict | list | tuple):
            if depth > MAX_DEPTH:
                raise _too_deep()
            inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            stack.extend((entry, depth + 1) for entry in reversed(inner))


def check_json(value: Any) -> None:
    """Check that a value from elsewhere than :func:`parse_json` can be written as JSON in UTF-8.

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
    check_text(value)
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise JsonTextError(f"holds what JSON cannot: {error}") from error
    except ValueError as error:
        raise JsonTextError("holds a number that is not finite or has too many digits") from error


def _too_deep() -> JsonTextError:
    return JsonTextError(f"is nested more than {MAX_DEPTH} deep", "is nested too deeply")


def _constant(name: str) -> JsonTextError:
    return JsonTextError(f"is not valid JSON: {name} is not a JSON value")


def _float(digits: str) -> float | JsonTextError:
    value = float(digits)
    if math.isfinite(value):
        return value
    return JsonTextError(f"holds a number that is too large: {digits:.40}", "holds a number that is too large")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | JsonTextError:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    problem = f"holds an object with the key {twice[:60]!r} twice"
    return JsonTextError(problem, "is not valid JSON: an object has the same key twice")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)

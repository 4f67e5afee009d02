"""Errors that several rooms raise, and values as they are shown in messages."""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any


class RunStoppedError(Exception):
    """Base of the errors that stop a run with everything saved: nothing in the run itself has to change.

    Attributes:
        once: What has to happen before the run can go on, as the end of a sentence.
    """

    once = "it is back"


class NotResumableError(FileNotFoundError):
    """Error of a checkpoint from the middle of a phase, without the rollouts that it goes on with."""


class TaskFieldError(ValueError):
    """Error of a field of a task.

    Attributes:
        field: Its place, as a path such as ``trace.turns[0].calls``.
        problem: The mistake and the remedy, to stand after the field.
        further: Further mistakes of the same task.
    """

    further: "tuple[TaskFieldError, ...]" = ()

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}`: {problem}")
        self.field = field
        self.problem = problem


class TaskFileError(ValueError):
    """Error of a line of a task file, or of a row of a data set.

    Attributes:
        path: The file.
        line: The line, counted from 1; or the row or item, as ``unit`` says.
        problem: The mistake and the remedy, without the place.
        field: The field; empty when the line as a whole is wrong.
        reason: A short name for what keeps the text from being read, such as ``not JSON``, by which such mistakes are
            counted; empty where it was read and says something wrong.
    """

    def __init__(
        self, path: str | Path, line: int, problem: str, field: str = "", *, unit: str = "line", reason: str = ""
    ) -> None:
        where = f"field `{field}`: " if field else ""
        super().__init__(f"{path}, {unit} {line}: {where}{problem}")
        self.path = Path(path)
        self.line = line
        self.problem = problem
        self.field = field
        self.reason = reason


def typed(value: Any, kind: type, field: str) -> Any:
    """Return ``value`` if it is of the type.

    Args:
        value: A JSON value.
        kind: The type it must have.
        field: Its place, as a path.

    Raises:
        TaskFieldError: It has another type.
    """
    if not isinstance(value, kind):
        names = {str: "a string", list: "a list", dict: "an object", Mapping: "an object", int: "an integer"}
        names |= {bool: "true or false"}
        raise TaskFieldError(field, f"must be {names[kind]}, got {type(value).__name__}")
    return value


def needed(record: Mapping[str, Any], field: str, kind: type = object, prefix: str = "") -> Any:
    """Return a field that must be there.

    Args:
        record: A JSON object.
        field: The field's name.
        kind: The type it must have.
        prefix: The path of the record, for the error; it ends in a dot.

    Raises:
        TaskFieldError: The field is missing or has another type.
    """
    if field not in record:
        raise TaskFieldError(prefix + field, "is missing")
    return record[field] if kind is object else typed(record[field], kind, prefix + field)


FAILURES = (Exception, SystemExit)
"""What code of the user's may raise and nothing may end by; Ctrl-C stays what it is."""


def plain_text(text: str) -> str:
    """Return a text that every file and tokenizer takes: a ``str`` and no subclass, in which UTF-8 has no gap.

    Half of a surrogate pair, which a JSON escape may leave, becomes a question mark.

    >>> plain_text("a" + chr(0xD83D) + "b")
    'a?b'
    """
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def failure_reason(error: BaseException) -> str:
    """Return an exception's message as plain text, or the name of its class if it has none."""
    try:
        words = str(error)
    except BaseException:  # noqa: BLE001  # its __str__ is the user's code too, and may raise what it likes
        words = ""
    return plain_text(words) or type(error).__name__


def named_failure(error: BaseException) -> str:
    """Return an exception's class and message.

    >>> named_failure(KeyError("a")), named_failure(ValueError())
    ("KeyError: 'a'", 'ValueError')
    """
    name, reason = type(error).__name__, failure_reason(error)
    return name if reason == name else f"{name}: {reason}"


def shortened(value: object, characters: int = 80) -> str:
    """Return ``repr(value)``, cut to about ``characters``; a string keeps both of its quotes.

    Args:
        value: Any value.
        characters: Largest number of characters, before quotes and escapes.

    >>> shortened("ab" * 9, 8), shortened([1, 2, 3, 4, 5], 8), shortened("ab")
    ("'ababa...'", '[1, 2...', "'ab'")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= characters else f"{value[: characters - 3]}...")
    text = repr(value)
    return text if len(text) <= characters else f"{text[: characters - 3].rstrip()}..."


def differing(one: str, other: str, characters: int = 80) -> tuple[str, str]:
    """Return an excerpt of each of two texts, quoted, that shows where they first differ.

    Args:
        one: A text.
        other: A text that differs from it.
        characters: Largest number of characters of an excerpt, before quotes and escapes; at least 16.

    Returns:
        The two excerpts, cut at the same place; an excerpt that begins later in its text begins with three dots.

    >>> differing("2500 kg of " + "rye " * 9 + "flour", "2500 kg of " + "rye " * 9 + "flakes", 24)
    ("'...e rye rye flour'", "'...e rye rye flakes'")
    """
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    # Where both fit, or differ near their starts, nothing is cut off there.
    start = 0 if at < characters - 8 or max(len(one), len(other)) <= characters else at - characters // 2
    head = "..." if start else ""
    return shortened(head + one[start:], characters), shortened(head + other[start:], characters)

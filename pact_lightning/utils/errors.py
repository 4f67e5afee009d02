"""Errors that several rooms raise, and values as they are shown in messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunStoppedError(Exception):
    """Base of the errors that stop a run with everything saved: nothing in the run itself has to change.

    Attributes:
        once: What has to happen before the run can go on, as the end of a sentence.
    """

    once = "it is back"


class TaskFieldError(ValueError):
    """A field of a task is wrong.

    Attributes:
        field: Where, as a path such as ``trace.turns[0].calls``.
        problem: The mistake and the remedy, to stand after the field.
        further: Further mistakes of the same task.
    """

    further: "tuple[TaskFieldError, ...]" = ()

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}`: {problem}")
        self.field = field
        self.problem = problem


class TaskFileError(ValueError):
    """A line of a task file, or a row of a data set, is wrong.

    Attributes:
        path: The file.
        line: The line, counted from 1; or the row, counted as ``unit`` says.
        problem: What is wrong and what is wanted, without the place.
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
    """Gives ``value`` back when it is of the type.

    Args:
        value: A JSON value.
        kind: The type it must have.
        field: Where it stands.

    Raises:
        TaskFieldError: It has another type.
    """
    if not isinstance(value, kind):
        names = {str: "a string", list: "a list", dict: "an object", Mapping: "an object", int: "an integer"}
        raise TaskFieldError(field, f"must be {names[kind]}, got {type(value).__name__}")
    return value


def shortened(value: object, characters: int = 80) -> str:
    """A value as ``repr`` gives it, of at most about so many characters; a string keeps both of its quotes.

    Args:
        value: Any value.
        characters: How many at most, before quotes and escapes.

    >>> shortened("ab" * 9, 8), shortened([1, 2, 3, 4, 5], 8), shortened("ab")
    ("'ababa...'", '[1, 2...', "'ab'")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= characters else f"{value[: characters - 3]}...")
    text = repr(value)
    return text if len(text) <= characters else f"{text[: characters - 3].rstrip()}..."

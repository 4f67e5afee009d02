"""Observations of Python tools: returned values and exceptions as the text that the policy reads."""

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import socket
import uuid
from typing import Any

import numpy as np

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.utils.errors import failure_reason, named_failure, plain_text

RAISED = "The tool failed: "
"""Beginning of the observation for an exception."""

_WRITTEN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, pathlib.PurePath, uuid.UUID)
_UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)


class ToolOutputError(ValueError):
    """Error of a tool that returned a value without a text."""


def output_text(value: Any) -> str:
    """Convert a returned value to an observation.

    A string stays as it is; everything else becomes JSON. ``None`` is ``null`` [D], which differs from an empty text.
    Besides JSON's own types, dataclasses, pydantic models, enums, NumPy's scalars and arrays, dates, decimals, paths
    and UUIDs are converted, at any depth.

    Args:
        value: The value that the tool returned.

    Raises:
        ToolOutputError: JSON cannot hold the value: another type, a cycle, NaN or infinity, too deep a nesting.
    """
    if isinstance(value, str):
        return plain_text(value)  # of an enum that is a str too, the value
    try:
        return plain_text(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain))
    except RecursionError as error:
        raise ToolOutputError("the result is nested too deeply to be written as JSON") from error
    except (TypeError, ValueError) as error:
        raise ToolOutputError(f"the result cannot be written as JSON: {failure_reason(error)}") from error


def plain_result(result: Any) -> ToolResult:
    """Return what an environment's ``call`` returned in Python's own types: all that leaves an environment is plain.

    Args:
        result: The returned value. NumPy's booleans are booleans, and ``None`` is no error.

    Raises:
        TypeError: It is no ``ToolResult``, its text is no text, or ``error`` is neither true nor false.
    """
    if not isinstance(result, ToolResult):
        raise TypeError(f"the environment's call() must return a ToolResult with a text, not a {type(result).__name__}")
    text: object = result.text
    if not isinstance(text, str):
        kind = type(text).__name__
        raise TypeError(f"the environment's call() must return a ToolResult with a text, not one with a {kind}")
    solved = None if result.solved is None else _flag("solved", result.solved)
    return ToolResult(plain_text(text), _flag("error", result.error), solved, _flag("unanswered", result.unanswered))


def _flag(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool | np.bool_ | int):
        return bool(value)
    raise TypeError(f"`{name}` of a ToolResult must be True or False, not a {type(value).__name__}")


def failure_text(error: BaseException) -> str:
    """Convert an exception to an observation: its class and its message, never a traceback."""
    return RAISED + named_failure(error)


def _plain(value: Any) -> Any:
    """Convert one level of a value that JSON does not know; ``json`` calls this again for its parts."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, _WRITTEN_AS_TEXT):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic, which we do not import
        return value.model_dump(mode="json")
    raise TypeError(f"it holds a {type(value).__name__}; return text, numbers, lists and dictionaries of these")


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether a failed or timed-out connection is among an exception and its causes.

    HTTP clients wrap connection errors in their own classes, which keep them as cause or context.

    Args:
        error: The exception that a tool raised.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, _UNREACHABLE):
            return True
        seen.add(id(error))
        hidden = error.__suppress_context__ and error.__cause__ is None
        error = None if hidden else error.__cause__ or error.__context__
    return False

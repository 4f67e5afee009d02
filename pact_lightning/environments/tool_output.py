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
        return str.__str__(value)  # of an enum that is a str too, the value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError as error:
        raise ToolOutputError("the result is nested too deeply to be written as JSON") from error
    except (TypeError, ValueError) as error:
        raise ToolOutputError(f"the result cannot be written as JSON: {failure_reason(error)}") from error


def failure_text(error: BaseException) -> str:
    """Convert an exception to an observation: its class and its message, never a traceback."""
    name, reason = type(error).__name__, failure_reason(error)
    return f"{RAISED}{name}" if reason == name else f"{RAISED}{name}: {reason}"


def failure_reason(error: BaseException) -> str:
    """Return an exception's message, or the name of its class if it has none."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # its __str__ is the tool's code too
        return type(error).__name__


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

"""What a Python tool returns or raises, as the text that the policy reads.

Which exceptions of a tool say that nobody answered, so that it is no fault of the call.
"""

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

_WRITTEN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, pathlib.PurePath, uuid.UUID)

RAISED = "The tool failed: "
"""How the observation for an exception begins."""


class ToolOutputError(ValueError):
    """A tool returned something that has no text."""


def output_text(value: Any) -> str:
    """The observation for a returned value.

    A string stays as it is; everything else becomes JSON: ``None`` is ``null`` [D], which tells a call that gave
    nothing from one that gave an empty text. Beside JSON's own types, dataclasses, pydantic models, enums, NumPy's
    scalars and arrays, dates, decimals, paths and UUIDs are written, at any depth.

    Args:
        value: What the tool returned.

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
    """The observation for an exception: its class and its words, never a traceback."""
    name, reason = type(error).__name__, failure_reason(error)
    return f"{RAISED}{name}" if reason == name else f"{RAISED}{name}: {reason}"


def failure_reason(error: BaseException) -> str:
    """An exception's own words, or its class where it has none."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # its __str__ is the tool's code too
        return type(error).__name__


def _plain(value: Any) -> Any:
    """One level of a value that JSON does not know; what is inside comes back here."""
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


_UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed or ran out of time, here or in what led to this exception.

    The clients of HTTP wrap these in classes of their own, which lead back to them as cause or context.

    Args:
        error: What a tool raised.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, _UNREACHABLE):
            return True
        seen.add(id(error))
        hidden = error.__suppress_context__ and error.__cause__ is None
        error = None if hidden else error.__cause__ or error.__context__
    return False

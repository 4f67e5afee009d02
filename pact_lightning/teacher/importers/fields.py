"""Values of a record, each with its place in the mistake that is told of it."""

from collections.abc import Mapping
from typing import Any

from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.utils.errors import TaskFieldError, typed
from pact_lightning.utils.json_text import JsonTextError, parse_json


def wanted(value: Any, kind: type, field: str) -> Any:
    """Return the value if it is of the type.

    Raises:
        RecordError: It has another type.
    """
    try:
        return typed(value, kind, field)
    except TaskFieldError as error:
        raise RecordError("wrong type", field, error.problem) from error


def needed(record: Any, *names: str) -> dict[str, Any]:
    """Return the record if it is an object with these fields.

    Raises:
        RecordError: It is no object, or a field is missing.
    """
    found: dict[str, Any] = wanted(record, dict, "(the record)")
    for name in names:
        if name not in found:
            raise RecordError("missing field", name, "is missing")
    return found


def decoded(value: Any, kind: type, field: str) -> Any:
    """Return a value that may also come as JSON text, as in many data sets.

    Raises:
        RecordError: The text is not JSON, or the value has another type.
    """
    if isinstance(value, str) and kind is not str:
        try:
            value = parse_json(value)
        except JsonTextError as error:
            raise RecordError("not JSON", field, str(error)) from error
    return value if kind is object else wanted(value, kind, field)


def read_id(record: Mapping[str, Any], *names: str, where: str = "") -> str:
    """Return the first of the named fields that is present, as a string; it may be a whole number.

    Args:
        record: A JSON object.
        *names: Names of the field.
        where: The object's place; empty for the record.

    Raises:
        RecordError: It has another type.
    """
    for name in names:
        value = record.get(name)
        if value is not None:
            is_number = isinstance(value, int) and not isinstance(value, bool)
            return str(value if is_number else wanted(value, str, f"{where}.{name}".removeprefix(".")))
    return ""

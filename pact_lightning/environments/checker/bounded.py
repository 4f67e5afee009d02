"""Validator of schemas that nobody has read: it asks no network, and no regular expression runs for long."""

import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

_PATTERN_S = 0.2
_SCHEMA_S = 1.0
_deadline: ContextVar[float] = ContextVar("_deadline", default=float("inf"))


def allows(parameters: Mapping[str, Any], arguments: Any) -> bool | None:
    """Return whether a schema allows arguments; ``None`` if that cannot be found out.

    It cannot where a regular expression takes longer than 0.2 seconds or the whole schema longer than 1, a reference
    leads nowhere, or the schema applies itself to the same value without end.

    Args:
        parameters: A JSON Schema.
        arguments: A JSON value.
    """
    # An empty registry fetches nothing.
    validator: Validator = _Bounded(_without_dialects(parameters), registry=Registry())
    until = _deadline.set(time.monotonic() + _SCHEMA_S)
    try:
        return bool(validator.is_valid(arguments))
    except Exception:  # noqa: BLE001  # the schema is anybody's, and jsonschema's own errors are of many kinds
        return None
    finally:
        _deadline.reset(until)


def _without_dialects(schema: Any) -> Any:
    """Leave out every ``$schema``: below the root it would replace the validator by one without these bounds."""
    if isinstance(schema, Mapping):
        kept = {key: value for key, value in schema.items() if key != "$schema" or not isinstance(value, str)}
        return {key: _without_dialects(value) for key, value in kept.items()}
    return [_without_dialects(entry) for entry in schema] if isinstance(schema, list | tuple) else schema


def _matches(pattern: str, text: str) -> bool:
    """Search for a pattern; the standard library's ``re`` has no limit of time.

    Raises:
        TimeoutError: It takes too long.
    """
    return regex.search(pattern, text, timeout=_PATTERN_S) is not None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    del schema
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError("the pattern is not in the text")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    del schema
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _reference(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Follow a reference while there is time: only by references a small schema can take for ever."""
    if time.monotonic() > _deadline.get():
        raise TimeoutError("the schema takes too long")
    yield from Draft202012Validator.VALIDATORS["$ref"](validator, reference, instance, schema) or ()


def _dynamic_reference(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if time.monotonic() > _deadline.get():
        raise TimeoutError("the schema takes too long")
    yield from Draft202012Validator.VALIDATORS["$dynamicRef"](validator, reference, instance, schema) or ()


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        patterns = schema.get("patternProperties", {})
        rest = {name: value for name, value in instance.items() if not any(_matches(p, name) for p in patterns)}
        original = Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from original(validator, allowed, rest, {**schema, "patternProperties": {}}) or ()


def _unevaluated_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if "patternProperties" in repr(schema):
        raise TimeoutError("jsonschema would search for patterns without a limit")
    yield from Draft202012Validator.VALIDATORS["unevaluatedProperties"](validator, allowed, instance, schema) or ()


_Bounded = extend(
    Draft202012Validator,
    {
        "$ref": _reference,
        "$dynamicRef": _dynamic_reference,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "unevaluatedProperties": _unevaluated_properties,
    },
)

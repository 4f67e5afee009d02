"""Nulls with which a table fills up JSON objects, told from nulls that are meant.

A table (Arrow, Parquet) gives every object of a column the keys of all rows, with null where a row has no such key. In
a JSON schema null is no value of any keyword but ``default`` and ``const``; of arguments, the tool's schema says where
null may stand.
"""

from collections.abc import Collection, Mapping
from typing import Any

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("default", "const", "enum", "examples")
_NEVER_NULL = frozenset({
    "$defs", "$ref", "additionalProperties", "allOf", "anyOf", "contains", "definitions", "dependentSchemas",
    "description", "else", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "if", "items",
    "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "required", "then",
    "title", "type", "uniqueItems",
})  # fmt: skip
"""Keywords of JSON Schema that take no null."""


def without_nulls(value: Any, kept: Collection[str] = (), needed: Collection[str] = ()) -> Any:
    """Take the null members out of an object and of the objects in it.

    Args:
        value: A JSON value.
        kept: Keys whose values stay as they are, unless they are null.
        needed: Keys that stay even if they are null, for whoever tells that they must not be.
    """
    if isinstance(value, Mapping):
        return {
            key: item if key in kept else without_nulls(item, kept, needed)
            for key, item in value.items()
            if item is not None or key in needed
        }
    return [without_nulls(item, kept, needed) for item in value] if isinstance(value, list) else value


def without_nulls_in_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Take the nulls of a table out of a tool in OpenAI format.

    The schema of its arguments is cleaned only if a null stands where JSON Schema has none. Then ``default`` and
    ``const`` that are null stay where the schema takes null.

    Args:
        tool: The tool.

    >>> schema = {"type": ["string", "null"], "default": None, "items": None}
    >>> without_nulls_in_tool({"function": {"name": "f", "strict": None, "parameters": schema}})
    {'function': {'name': 'f', 'parameters': {'type': ['string', 'null'], 'default': None}}}
    """
    found: dict[str, Any] = without_nulls(tool, ("parameters",))
    function = found.get("function")
    if isinstance(function, dict) and isinstance(function.get("parameters"), dict):
        function["parameters"] = without_nulls_in_schema(function["parameters"])
    return found


def without_nulls_in_schema(schema: Any) -> Any:
    """Take the nulls of a table out of a JSON schema; see :func:`without_nulls_in_tool`."""
    return _cleaned(schema) if _filled_up(schema) else schema


def without_nulls_in_arguments(arguments: Mapping[str, Any], parameters: Any) -> tuple[dict[str, Any], int]:
    """Take the nulls of a table out of a call's arguments.

    A null goes if the schema has properties but none of this name, and allows no further ones in words; or if it has
    the property, does not ask for it, and does not take null for it.

    Args:
        arguments: The arguments.
        parameters: JSON schema of the tool's arguments; anything else if it is not known, and then nothing goes.

    Returns:
        The arguments, and the number of members taken out.

    >>> schema = {"properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}}}
    >>> without_nulls_in_arguments({"a": None, "b": None, "c": None}, schema)
    ({'b': None}, 2)
    """
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return dict(arguments), 0
    further = any(parameters.get(key) not in (None, False) for key in ("additionalProperties", "patternProperties"))
    required = parameters.get("required")
    asked_for = required if isinstance(required, list) else ()
    found: dict[str, Any] = {}
    dropped = 0
    for key, item in arguments.items():
        if item is None:
            known = key in properties
            if (key not in asked_for and not takes_null(properties[key])) if known else not further:
                dropped += 1
                continue
        found[key], inner = _value(item, properties.get(key))
        dropped += inner
    return found, dropped


def takes_null(schema: Any) -> bool:
    """Tell whether a JSON schema takes null, as far as it says so without references; ``True`` if it does not say."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if ("default" in schema and schema["default"] is None) or schema.get("nullable") is True:
        return True
    kind = schema.get("type")
    if kind is not None and kind != "null" and not (isinstance(kind, list) and "null" in kind):
        return False
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        return False
    if schema.get("const") is not None:
        return False
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and not any(map(takes_null, schema[key])):
            return False
    return not isinstance(schema.get("allOf"), list) or all(map(takes_null, schema["allOf"]))


def _value(value: Any, schema: Any) -> tuple[Any, int]:
    if isinstance(value, Mapping):
        return without_nulls_in_arguments(value, schema)
    if isinstance(value, list) and isinstance(schema, Mapping):
        items = [_value(item, schema.get("items")) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0


def _filled_up(schema: Any) -> bool:
    """Tell whether a null stands where JSON Schema has none."""
    if isinstance(schema, list):
        return any(map(_filled_up, schema))
    if not isinstance(schema, Mapping):
        return False
    for key, value in schema.items():
        if value is None and key in _NEVER_NULL:
            return True
        if key in _BY_NAME and isinstance(value, Mapping):
            if any(item is None or _filled_up(item) for item in value.values()):
                return True
        elif key not in _VALUES and _filled_up(value):
            return True
    return False


def _cleaned(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_cleaned(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VALUES:
            without = {name: item for name, item in schema.items() if name not in ("default", "const")}
            if value is not None or (key in ("default", "const") and _says_null(without)):
                found[key] = value
        elif value is not None:
            if key in _BY_NAME and isinstance(value, Mapping):
                found[key] = {name: _cleaned(item) for name, item in value.items() if item is not None}
            else:
                found[key] = _cleaned(value)
    return found


def _says_null(schema: Mapping[str, Any]) -> bool:
    """Tell whether a schema takes null, and says anything on what it takes."""
    says = any(schema.get(key) is not None for key in ("type", "enum", "anyOf", "oneOf", "allOf", "nullable"))
    return says and takes_null(schema)

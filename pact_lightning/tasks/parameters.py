"""Parameters of a tool: mistakes in a JSON Schema that make it none, found fast enough for every tool of a large file.

Only keywords that prompts, checks of arguments and servers read are looked at, and names of types are free: data sets
write ``dict`` and ``float``. ``pact-lightning check-env`` holds an environment's own schemas to all of JSON Schema.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SCHEMA = (Mapping, bool)


def parameters_mistake(parameters: Mapping[str, Any]) -> str | None:
    """Find the first mistake in the schema of a tool's arguments.

    Args:
        parameters: The schema, of JSON values.

    Returns:
        The mistake with its place in the schema, to stand after the field; ``None`` for a sound schema.

    >>> parameters_mistake({"properties": {"a": {"type": 5}}})
    'is not a valid JSON Schema: properties.a.type must be a name of a type, or a list of such names, got int'
    """
    # With a stack of our own: the file decides how deep the schema is.
    stack: list[tuple[str, Any]] = [("", parameters)]
    while stack:
        where, schema = stack.pop()
        if not isinstance(schema, Mapping):
            continue
        for keyword, (is_right, wanted) in _KEYWORDS.items():
            value = schema.get(keyword)
            if value is not None and not is_right(value):
                return f"is not a valid JSON Schema: {where}{keyword} must be {wanted}, got {type(value).__name__}"
        stack.extend((f"{where}{name}.", inner) for name, inner in _inner(schema))
    return None


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _BY_NAME:
            yield from ((f"{keyword}.{name}", inner) for name, inner in (value or {}).items())
        elif keyword in _ONE:
            yield from [(keyword, value)] if not isinstance(value, list) else ((keyword, inner) for inner in value)
        elif keyword in _SEVERAL:
            yield from ((f"{keyword}[{index}]", inner) for index, inner in enumerate(value or ()))


def _is_type(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(inner is None or isinstance(inner, _SCHEMA) for inner in value.values())


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(inner, _SCHEMA) for inner in value)


def _is_one(value: Any) -> bool:
    return isinstance(value, _SCHEMA) or _is_several(value)  # a list was the form of tuples before draft 2020-12


_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_ONE = ("items", "additionalProperties")
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
_KEYWORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, "a name of a type, or a list of such names"),
    # Draft 3 said it of each argument, and data sets still do.
    "required": (lambda value: isinstance(value, bool) or _is_names(value), "a list of names of arguments"),
    "enum": (lambda value: isinstance(value, list), "a list of values"),
    "description": (lambda value: isinstance(value, str), "a text"),
    "$ref": (lambda value: isinstance(value, str), "a text"),
    **dict.fromkeys(_BY_NAME, (_is_by_name, "an object of schemas")),
    **dict.fromkeys(_ONE, (_is_one, "a schema")),
    **dict.fromkeys(_SEVERAL, (_is_several, "a list of schemas")),
}
"""What a keyword's value must be; null counts as absent."""

"""JSON schemas of type hints, in the words of transformers' newest releases [C].

The package makes them itself, for they must not depend on the release that is installed: before 5.23 transformers
described an enum, and every class that it did not know, as an object, and dropped the items and choices of a union.
"""

from collections.abc import Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_SCALARS: dict[type, str] = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
_TYPES: dict[type, str] = _SCALARS | {list: "array", tuple: "array", dict: "object"}


class HintSchemaError(ValueError):
    """Error of a type hint, or of a part of one, that has no JSON schema."""


def hint_schema(hint: Any) -> dict[str, Any]:
    """Make the JSON schema of the values that a type hint allows.

    Args:
        hint: Type hint as ``typing.get_type_hints`` returns it.

    Returns:
        The schema. ``X | None`` is X with ``nullable``, a keyword that JSON Schema does not know and chat templates do.

    Raises:
        HintSchemaError: The hint holds a class without a schema, a tuple of any length or of one element, an enum
            without members, or a choice that is no JSON scalar.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind is None:
        return _plain(hint)
    if kind in (Union, UnionType):
        return _union(parts)
    if kind is Literal:
        return _choice(parts)
    if kind is list and parts:
        return {"type": "array", "items": hint_schema(parts[0])}
    if kind is tuple and parts:
        if len(parts) == 1 or ... in parts:
            raise HintSchemaError(f"{hint} is a tuple of one element or of any number; a list has a schema")
        return {"type": "array", "prefixItems": [hint_schema(part) for part in parts]}
    if kind is dict and parts:
        return {"type": "object", "additionalProperties": hint_schema(parts[1])}
    return _plain(kind)


def _plain(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice([member.value for member in hint])
    if not isinstance(hint, type) or hint not in _TYPES:
        raise HintSchemaError(f"{hint} has no JSON schema")
    return {"type": _TYPES[hint]}


def _union(parts: Sequence[Any]) -> dict[str, Any]:
    known = [hint_schema(part) for part in parts if part is not NoneType]
    schema: dict[str, Any]
    if len(known) == 1:
        schema = known[0]
    elif all(part.keys() == {"type"} for part in known):
        schema = {"type": _one_or_all(sorted({part["type"] for part in known}))}
    else:  # a list of types would lose the items and the choices of its parts
        schema = {"anyOf": known}
    return schema | {"nullable": True} if NoneType in parts else schema


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise HintSchemaError(f"{list(values)} are no choices that JSON can write")
    return {"type": _one_or_all(list(dict.fromkeys(_SCALARS[type(value)] for value in values))), "enum": list(values)}


def _one_or_all(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names

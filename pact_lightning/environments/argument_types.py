"""Arguments of a call as the type hints of a function say: enum members, tuples, keys that are no text."""

import enum
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError


def argument_types(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """Return the types of those arguments that JSON has no type for.

    Args:
        function: A function with a schema by :func:`~pact_lightning.environments.function_schema.function_schema`.
    """
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {name: TypeAdapter(hints[name]) for name in parameters if _beyond_json(hints[name])}


def converted(types: Mapping[str, TypeAdapter[Any]], arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Convert a call's arguments to what the function's type hints say [D]; TRL passes JSON's values on.

    Args:
        types: Types by :func:`argument_types`.
        arguments: The call's arguments, which its schema allows.

    Returns:
        The arguments, and what is wrong with them, or ``None``.
    """
    made = dict(arguments)
    for name in types.keys() & arguments.keys():
        try:
            # By JSON, and strictly: else "3" would become a number.
            made[name] = types[name].validate_json(json.dumps(arguments[name]), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{step!r}]" for step in first["loc"])
            return made, f"Wrong arguments: {name}{where}: {first['msg']}."
    return made, None


def _beyond_json(hint: Any) -> bool:
    """Return whether an enum, a tuple, or an object whose keys are no text is anywhere in a type hint."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is tuple or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return True
    if kind is dict and parts and parts[0] not in (str, Any):
        return True
    return any(_beyond_json(part) for part in parts)

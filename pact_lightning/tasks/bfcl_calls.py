"""BFCL's ground truth, written as Python calls, read without running it."""

import ast
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.environments.bfcl_package import api_class
from pact_lightning.environments.bfcl_schemas import tool_schemas


@cache
def parameter_names(class_names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """By function of the APIs its parameters, in the order of its signature.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """
    return {
        name: tuple(inspect.signature(getattr(api_class(class_name), name)).parameters)[1:]  # without self
        for class_name in class_names
        for name in (str(tool["function"]["name"]) for tool in tool_schemas([class_name]))
    }


def parse_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """Reads a call such as ``mv('a.txt', destination='b')``; positional arguments get their parameters' names.

    Args:
        text: The call, as one Python expression with literal arguments.
        parameters: Parameter names by function, in order.

    Returns:
        The call.

    Raises:
        ValueError: The text is no such call; the message says why.

    >>> parse_call("mv('a.txt', destination='b')", {"mv": ("source", "destination")})
    {'name': 'mv', 'arguments': {'source': 'a.txt', 'destination': 'b'}}
    """
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not a Python expression") from error
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise ValueError(f"{text!r} is not the call of a function by its name")
    name = expression.func.id
    if name not in parameters:
        raise ValueError(f"{text!r} calls {name!r}, which none of the involved classes has")
    known = parameters[name]
    if len(expression.args) > len(known):
        raise ValueError(f"{text!r} has {len(expression.args)} positional arguments, but {name} takes {len(known)}")
    given = [(known[place], value) for place, value in enumerate(expression.args)]
    given += [(keyword.arg or "**", keyword.value) for keyword in expression.keywords]
    arguments: dict[str, Any] = {}
    for parameter, value in given:
        if parameter not in known:
            raise ValueError(f"{text!r} has the argument {parameter!r}, but {name} takes {', '.join(known) or 'none'}")
        if parameter in arguments:
            raise ValueError(f"{text!r} gives {parameter!r} twice")
        arguments[parameter] = _literal(value, text)
    return ToolCall(name=name, arguments=arguments)


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return _json_value(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} has an argument that is no literal JSON value") from error


def _json_value(value: Any) -> Any:
    """The value as JSON would give it back: tuples are lists.

    Raises:
        TypeError: JSON has no such value.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_value(item) for key, item in value.items()}
    raise TypeError(f"JSON has no {type(value).__name__}")

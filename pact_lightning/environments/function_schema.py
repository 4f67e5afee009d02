"""Schemas of typed Python functions as tools, and checks of a call's arguments against them."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from typing import Any, get_origin, get_type_hints, is_typeddict

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from pact_lightning.environments.hint_schema import HintSchemaError, hint_schema
from pact_lightning.types.prompt import ToolSchema

_MAX_PROBLEMS = 5
_MAX_MESSAGE = 200

# JSON Schema takes 2.0 for an integer and Python does not: range(2.0) fails.
_StrictValidator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


# Type hints are code of the user's: what they raise when they are read is not known.
_UNREADABLE = (AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError)


class FunctionSchemaError(ValueError):
    """Error of a function that cannot become a tool."""


def function_schema(function: Callable[..., Any]) -> ToolSchema:
    """Make the schema of a function as transformers and TRL do [C].

    Args:
        function: Typed, with a Google docstring that describes it and each of its arguments.

    Raises:
        FunctionSchemaError: No docstring, an argument without a type hint or a description, a type that has no JSON
            schema, ``*args`` or ``**kwargs``, or a generator.
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    if not hasattr(function, "__name__"):
        raise FunctionSchemaError(f"{name} cannot become a tool: an object has no name to call it by; give a method")
    if not inspect.getdoc(function):
        wanted = "say in one what it does, and describe each argument under `Args:`"
        raise FunctionSchemaError(f"{name} cannot become a tool: it has no docstring; {wanted}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise FunctionSchemaError(f"{name} cannot become a tool: it is a generator; return the whole result")
    for parameter in inspect.signature(function).parameters.values():
        if (problem := _parameter_problem(parameter)) is not None:
            raise FunctionSchemaError(f"{name} cannot become a tool: {problem}")
    maker = _maker()
    try:
        schema = _schema(function)
    except (maker.DocstringParsingException, *_UNREADABLE) as error:
        raise FunctionSchemaError(f"{name} cannot become a tool: {_schema_problem(error)}") from error
    if not schema["function"]["description"]:
        raise FunctionSchemaError(f"{name} cannot become a tool: start its docstring with what it does")
    return schema


def _schema(function: Callable[..., Any]) -> ToolSchema:
    """Make a schema: its texts by transformers, from a stand-in whose hints are all ``str``, its types by us."""
    types: dict[str, dict[str, Any]] = {}
    for argument, hint in get_type_hints(function).items():
        try:
            types[argument] = hint_schema(hint)
        except HintSchemaError as error:
            if argument != "return":  # no call gives it: without a schema it is left out
                raise ValueError(_no_schema(argument, hint)) from error

    def stand_in() -> None:
        pass

    parameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature([parameter.replace(annotation=str) for parameter in parameters])
    stand_in.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect` reads
    stand_in.__annotations__ = dict.fromkeys(types, str)
    stand_in.__name__, stand_in.__doc__ = function.__name__, function.__doc__ or inspect.getdoc(function)
    schema: ToolSchema = _maker().get_json_schema(stand_in)
    described = schema["function"]["parameters"]["properties"]
    for argument, texts in described.items():
        described[argument] = types[argument] | {key: text for key, text in texts.items() if key != "type"}
    if "return" in schema["function"]:
        returned = schema["function"]["return"]
        schema["function"]["return"] = types["return"] | {key: returned[key] for key in returned if key != "type"}
    return schema


def _maker() -> Any:
    """Return transformers' maker of schemas, whose import takes most of a second: not every tool needs one."""
    from transformers.utils import chat_template_utils

    return chat_template_utils


def without_set_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``functools.partial`` as a function of the arguments that it leaves open [D]; any other as it is.

    The policy neither sees nor gives the arguments that are set, which need no type hint. A ``__name__`` or a
    ``__doc__`` that the partial was given hold in place of the function's.
    """
    if not isinstance(function, partial):
        return function
    if inspect.isgeneratorfunction(function):
        return function.func  # refused as such
    inner = without_set_arguments(function.func)

    def tool(**arguments: Any) -> Any:
        return function(**arguments)

    update_wrapper(tool, inner)
    for name in vars(function).keys() & {"__name__", "__qualname__", "__doc__"}:
        setattr(tool, name, vars(function)[name])
    given = list(inspect.signature(inner).parameters.values())[len(function.args) :]
    left = [parameter for parameter in given if parameter.name not in function.keywords]
    tool.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]  # what `inspect` reads
    names = {parameter.name for parameter in left} | {"return"}
    tool.__annotations__ = {name: hint for name, hint in tool.__annotations__.items() if name in names}
    return tool


def _parameter_problem(parameter: inspect.Parameter) -> str | None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return f"a call has named arguments only; put named ones in the place of `{parameter}`"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return f"a call has named arguments only; remove the `/` after {parameter.name}"
    if parameter.annotation is parameter.empty and parameter.name in ("self", "cls"):
        return f"it is a method without its object ({parameter.name}); give the method of an object"
    if parameter.annotation is parameter.empty:
        return f"its argument {parameter.name} has no type hint; add one, such as `{parameter.name}: str`"
    return None


def _schema_problem(error: Exception) -> str:
    """Return the problem that was found, with a remedy."""
    words = " ".join(" ".join(str(part) for part in error.args).split())
    if isinstance(error, _maker().DocstringParsingException):
        return f"{words.partition(' because ')[2]}; describe it under `Args:`"
    if isinstance(error, json.JSONDecodeError):
        return 'its docstring has `(choices: ...)` without a JSON list; write (choices: ["a", "b"]), or use Literal'
    return words


def _no_schema(argument: str, hint: Any) -> str:
    problem = (
        f"its argument {argument} has the type hint {inspect.formatannotation(hint)}, of which no schema can be made"
    )
    hints = "int, float, str, bool, None, list, tuple, dict, Literal, Enum and unions of these"
    remedy = f"take {_instead(hint)} there and convert it in the function: the type hints that can be used are {hints}"
    return f"{problem}; {remedy}"


def _instead(hint: Any) -> str:
    """Return the type hint that comes nearest to one that cannot be used."""
    kind = get_origin(hint) or hint
    if not isinstance(kind, type):
        return "one of JSON's types"
    if is_typeddict(kind) or dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"):
        return "a `dict`"
    if issubclass(kind, Mapping):
        return "a `dict`"
    return "a `list`" if issubclass(kind, Iterable) and not issubclass(kind, bytes | bytearray) else "a `str`"


def arguments_validator(schema: ToolSchema) -> Validator:
    """Make a validator of a tool's arguments.

    It is as strict as the function: no unknown arguments, and whole numbers for ``int``. It allows ``None`` where the
    type hint does: the schema says that by ``nullable``, a keyword that JSON Schema does not know.

    Args:
        schema: Schema by :func:`function_schema`.
    """
    parameters = _with_null(schema["function"]["parameters"])
    validator: Validator = _StrictValidator({**parameters, "additionalProperties": False})
    return validator


def argument_problem(validator: Validator, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Describe the mistakes in a call's arguments, as text for the policy; return ``None`` if there are none.

    Args:
        validator: Validator by :func:`arguments_validator`.
        name: The tool.
        arguments: The call's arguments.
    """
    known = list(validator.schema["properties"])
    try:
        problems = [f"there is no argument {given!r}" for given in arguments if given not in known]
        problems += [
            _problem(error)
            for error in sorted(validator.iter_errors(dict(arguments)), key=lambda error: list(map(str, error.path)))
            if error.validator != "additionalProperties" or error.path
        ]
    except RecursionError:  # the messages hold the values
        problems = ["they are nested too deeply"]
    if not problems:
        return None
    takes = f"takes {', '.join(known)}" if known else "takes no arguments"
    return f"Wrong arguments: {'; '.join(problems[:_MAX_PROBLEMS])}. {name} {takes}."


def _problem(error: ValidationError) -> str:
    error = best_match([error])  # of a union, the branch that comes nearest
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    message = error.message if len(error.message) <= _MAX_MESSAGE else f"...{error.message[-_MAX_MESSAGE:]}"
    return f"{where}: {message}" if where else message


def _with_null(schema: Any) -> Any:
    """Translate ``nullable``, by which transformers writes ``X | None``, into keywords of JSON Schema."""
    if not isinstance(schema, Mapping):
        return schema
    node = {key: value for key, value in schema.items() if key != "nullable"}
    if isinstance(node.get("properties"), Mapping):
        node["properties"] = {name: _with_null(value) for name, value in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in node:
            node[key] = _with_null(node[key])
    for key in ("anyOf", "prefixItems"):
        if key in node:
            node[key] = [_with_null(entry) for entry in node[key]]
    return _or_null(node) if schema.get("nullable") is True else node


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    """Allow ``null`` too, in a form whose errors are easy to read."""
    if "enum" in node:
        node["enum"] = [*node["enum"], None]
    if "anyOf" in node:
        node["anyOf"] = [*node["anyOf"], {"type": "null"}]
    if "type" in node:
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        node["type"] = [*kinds, "null"]
    return node

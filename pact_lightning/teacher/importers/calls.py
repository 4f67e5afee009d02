"""Calls of tools, as objects and as text: JSON, Python's notation of it, and Python's syntax of a call."""

import ast
import json
import re
import warnings
from typing import Any

from pact_lightning.teacher.importers.conversation import Reading, RecordError, RequestedCall
from pact_lightning.teacher.importers.fields import decoded, read_id, wanted
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.json_text import JsonTextError, check_json, parse_json
from pact_lightning.utils.table_nulls import without_nulls_in_arguments

_ARGUMENTS = ("arguments", "parameters", "args", "input")
_NAME = re.compile(r"[^\s()\[\]{}'\",=][^()\[\]{}'\",=]*(?=\()")
_BRACKET_OR_STRING = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[()]""", re.DOTALL)
_CONSTANTS = {"true": True, "false": False, "null": None}


def read_call(value: Any, field: str, reading: Reading) -> ToolCall:
    """Read a call: a name, and arguments as an object or its JSON text.

    Args:
        value: The call; its arguments stand under ``arguments``, ``parameters``, ``args`` or ``input``.
        field: The field's place.
        reading: Counts of changes: an empty string or ``null`` is taken as no arguments, JSON text within JSON text is
            read, and nulls with which a table fills up an object are taken out.

    Raises:
        RecordError: There is no name, or the arguments are no JSON object.
    """
    value = wanted(value, dict, field)
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RecordError("malformed call", f"{field}.name", "must be a string that is not empty")
    # A table fills up the keys that other rows have.
    key = next((key for key in _ARGUMENTS if value.get(key) is not None), None)
    key = key or next((key for key in _ARGUMENTS if key in value), None)
    if key is None:
        raise RecordError("malformed call", f"{field}.arguments", "is missing")
    if key == "args":
        reading.forms.add("args (LangChain)")
    return ToolCall(name=name, arguments=read_arguments(name, value[key], f"{field}.{key}", reading))


def read_arguments(name: str, arguments: Any, field: str, reading: Reading) -> dict[str, Any]:
    """Read a call's arguments; see :func:`read_call`.

    Raises:
        RecordError: They are no JSON object.
    """
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        reading.notes["empty arguments taken as none"] += 1
        return {}
    try:
        found = arguments
        if isinstance(found, str):
            found = decoded(found, object, field)
            if isinstance(found, str):
                reading.notes["arguments encoded as JSON twice"] += 1
                found = decoded(found, object, field)
            return dict(wanted(found, dict, field))
        cleaned, nulls = without_nulls_in_arguments(wanted(found, dict, field), reading.parameters.get(name))
    except RecordError as error:
        raise RecordError("malformed call", error.field, error.problem) from error
    if nulls:
        reading.notes["null of a table taken out of arguments"] += nulls
    return cleaned


def read_calls(value: Any, field: str, reading: Reading) -> tuple[RequestedCall, ...]:
    """Read one call or several: an object, a list of objects, or text of either as in :func:`calls_in_text`.

    Raises:
        RecordError: There is no call, or a call is malformed.
    """
    if isinstance(value, str):
        return calls_in_text(value, field, reading)
    if isinstance(value, list):
        if not value:
            raise RecordError("malformed call", field, "is an empty list; it must hold the calls")
        return tuple(requested_call(item, f"{field}[{index}]", reading) for index, item in enumerate(value))
    return (requested_call(value, field, reading),)


def calls_in_text(text: str, field: str, reading: Reading) -> tuple[RequestedCall, ...]:
    """Parse a text that holds nothing but calls.

    They come as one JSON object, a list of objects, objects one a line, any of these in Python's notation (Hermes' own
    data), or as ``[f(a=1), g(b="x")]`` (ToolACE). Python's forms are parsed, never run.

    Raises:
        RecordError: The text is none of these, or a call is malformed.
    """
    try:
        value = parse_json(text)
    except JsonTextError as error:
        problem = f"the call {error!s}: {text.strip()[:80]!r}"
    else:
        return read_calls(value, field, reading)
    for pieces in ([text], [line for line in text.splitlines() if line.strip()]):
        values = [json_or_python(piece) for piece in pieces]
        if values and all(isinstance(value, dict | list) for value in values):
            if not all(map(_is_json, pieces)):
                reading.notes["call in Python's notation read as JSON"] += 1
            return tuple(call for value in values for call in read_calls(value, field, reading))
    found, why = python_calls(text)
    if not found:
        raise RecordError("malformed call", field, f"{problem}; {why}" if why else problem)
    reading.forms.add("Python calls (ToolACE)")
    return tuple(RequestedCall(call, where=field) for call in found)


def python_calls(text: str) -> tuple[list[ToolCall], str]:
    """Parse ``[f(a=1), g(b="x")]``, with or without the brackets; nothing is run.

    A name may hold spaces and points, as ToolACE's do. Values are literals, JSON's ``true``, ``false`` and ``null``
    among them.

    Returns:
        The calls; if there are none, why a text that looks like calls is not read, else an empty text.

    >>> python_calls('[Find it(name="x", all=true)]')
    ([{'name': 'Find it', 'arguments': {'name': 'x', 'all': True}}], '')
    >>> python_calls("[f(1)]")
    ([], "the call of 'f' gives an argument without its name")
    """
    body = text.strip()
    if body.startswith("[") and body.endswith("]"):
        body = body[1:-1].strip()
    calls: list[ToolCall] = []
    while body:
        name = _NAME.match(body)
        end = None if name is None else _closing(body, name.end())
        if name is None or end is None:
            return [], ("" if not calls else f"something that is no call follows the call of {calls[-1]['name']!r}")
        title = name[0].strip()
        try:
            calls.append(ToolCall(name=title, arguments=_keywords(body[name.end() : end])))
        except ValueError as error:
            return [], f"the call of {title!r} {error}"
        body = body[end:].lstrip()
        if body and not body.startswith((",", ";")):
            return [], f"something that is no call follows the call of {title!r}"
        body = body[1:].lstrip()
    return calls, ""


def _closing(text: str, start: int) -> int | None:
    """Return the place behind the bracket that closes the one at ``start``; strings hold no brackets."""
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def _keywords(arguments: str) -> dict[str, Any]:
    """Return the named arguments of ``(a=1, b="x")``.

    Raises:
        ValueError: An argument has no name or no literal value; the message continues a sentence about the call.
    """
    try:
        tree = _tree(f"f{arguments}")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError("is not in Python's syntax") from error
    call = tree.body
    assert isinstance(call, ast.Call)
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("gives an argument without its name")
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        value = _literal(ast.Expression(keyword.value))
        if value is None and not _is_none(keyword.value):
            raise ValueError(f"gives {keyword.arg!r} a value that is no literal")
        found[str(keyword.arg)] = value
    return found


def _is_none(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")


class _Constants(ast.NodeTransformer):
    """Puts Python's constants in the place of JSON's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:  # the name is Python's
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def python_value(text: str) -> Any:
    """Parse a Python literal that is also a JSON value; return ``None`` for any other text, or for a key twice."""
    try:
        return _literal(_tree(text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _tree(text: str) -> ast.Expression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # an unknown backslash escape is no concern of the user's
        return ast.parse(text, mode="eval")


def _literal(tree: ast.Expression) -> Any:
    """Return the value of a literal as JSON has it; ``None`` where it is none, or has a key twice."""
    try:
        tree = _Constants().visit(tree)
        value = ast.literal_eval(tree)
        objects = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        if any(len(ast.literal_eval(node)) < len(node.keys) for node in objects):
            return None
        check_json(value)
        # Tuples become lists, and keys strings, as in any JSON; ``{1: "a", "1": "b"}`` has one key twice by then.
        return parse_json(json.dumps(value))
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None


def json_or_python(text: str) -> Any:
    """Return the value of a text in JSON or in Python's notation; ``None`` for any other text."""
    try:
        return parse_json(text)
    except JsonTextError:
        return python_value(text)


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except JsonTextError:
        return False
    return True


def requested_call(value: Any, field: str, reading: Reading) -> RequestedCall:
    """Read a call with its id; the call itself may stand under ``function``, as in OpenAI's format.

    Raises:
        RecordError: It is malformed.
    """
    request = decoded(value, dict, field)
    wrapped = request.get("function") is not None
    call = read_call(request["function"] if wrapped else request, f"{field}.function" if wrapped else field, reading)
    return RequestedCall(call, read_id(request, "id", "call_id", "tool_call_id", where=field), field)

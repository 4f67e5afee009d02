"""Fields that all formats share: tools, calls, reference, environment, and text with tags.

:func:`split_text` parses a teacher's text with ``<think>`` and ``<tool_call>`` tags.
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pact_lightning.teacher.importers.conversation import Conversation, Dialogue, RecordError, RequestedCall, Role
from pact_lightning.types.prompt import EnvironmentSpec, ToolSchema
from pact_lightning.types.task import Reference, SubAnswer
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.errors import TaskFieldError, shortened, typed
from pact_lightning.utils.json_text import JsonTextError, check_json, parse_json

_OPEN, _CLOSE = "<think>", "</think>"
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


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


def conversation_of(
    record: Mapping[str, Any],
    dialogue: Dialogue,
    tools: tuple[ToolSchema, ...],
    notes: Counter[str],
    *,
    ids: Sequence[str] = ("id",),
) -> Conversation:
    """Make a conversation of a dialogue and the fields that records of every format may have beside it.

    Args:
        record: The record; its id, ``environment``, ``reference`` or ``answer``, ``kind`` and ``metadata`` are used if
            present.
        dialogue: The record's dialogue.
        tools: The record's tools.
        notes: Counts of the changes that make it fit.
        ids: Possible names of the id's field.

    Raises:
        RecordError: A field has the wrong type.
    """
    return Conversation(
        id=read_id(record, *ids),
        dialogue=dialogue,
        tools=tools,
        environment=read_environment(record),
        reference=read_reference(record, notes),
        kind=wanted(record.get("kind") or "", str, "kind"),
        metadata=wanted(record.get("metadata") or {}, dict, "metadata"),
    )


def read_role(value: Any, roles: Mapping[str, Role], field: str) -> Role:
    """Return a speaker's role.

    Args:
        value: The role's name in the record.
        roles: Roles by the format's names.
        field: The field's place.

    Raises:
        RecordError: It is none of these names.
    """
    if not isinstance(value, str) or value not in roles:
        raise RecordError("unknown role", field, f"must be one of {', '.join(roles)}, got {shortened(value, 40)}")
    return roles[value]


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
    return wanted(value, kind, field)


def read_id(record: Mapping[str, Any], *names: str) -> str:
    """Return the first of the named fields that is present, as a string; it may be a whole number."""
    for name in names:
        if record.get(name) is not None:
            value = record[name]
            is_number = isinstance(value, int) and not isinstance(value, bool)
            return str(value if is_number else wanted(value, str, name))
    return ""


def read_tools(value: Any, field: str) -> tuple[ToolSchema, ...]:
    """Read tools in OpenAI format; bare function schemas (``name, description, parameters``) are wrapped.

    Args:
        value: A list, its JSON text, or ``None``.
        field: The field's place.

    Raises:
        RecordError: A tool has no name, or its parameters are no object.
    """
    if value is None:
        return ()
    tools = []
    for index, entry in enumerate(decoded(value, list, field)):
        where = f"{field}[{index}]"
        tool = decoded(entry, dict, where)
        function = dict(wanted(tool["function"], dict, f"{where}.function") if "function" in tool else tool)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RecordError("broken tool schema", f"{where}.name", "must be a string that is not empty")
        if function.get("parameters") is None:
            function["parameters"] = function.pop("input_schema", None) or {"type": "object", "properties": {}}
        wanted(function["parameters"], dict, f"{where}.parameters")
        tools.append({"type": "function", "function": function})
    return tuple(tools)


def read_call(value: Any, field: str, notes: Counter[str]) -> ToolCall:
    """Read a call: a name, and arguments under ``arguments`` or ``parameters``, as an object or its JSON text.

    Args:
        value: The call.
        field: The field's place.
        notes: Counts of changes: an empty string or ``null`` is taken as no arguments.

    Raises:
        RecordError: There is no name, or the arguments are no JSON object.
    """
    value = wanted(value, dict, field)
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RecordError("malformed call", f"{field}.name", "must be a string that is not empty")
    key = "arguments" if "arguments" in value else "parameters"
    if key not in value:
        raise RecordError("malformed call", f"{field}.arguments", "is missing")
    arguments = value[key]
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        notes["empty arguments taken as none"] += 1
        arguments = {}
    try:
        return ToolCall(name=name, arguments=decoded(arguments, dict, f"{field}.{key}"))
    except RecordError as error:
        raise RecordError("malformed call", error.field, error.problem) from error


def read_call_text(text: str, field: str, notes: Counter[str]) -> ToolCall:
    """Parse the text between ``<tool_call>`` and ``</tool_call>``.

    Hermes' own data holds calls as Python dictionaries; such a call is read, and counted in ``notes``.

    Raises:
        RecordError: The text is neither a JSON object nor a Python dictionary, or no call.
    """
    try:
        value = parse_json(text)
    except JsonTextError as error:
        value = python_value(text)
        if not isinstance(value, dict):
            raise RecordError("malformed call", field, f"the call {error!s}: {text.strip()[:80]!r}") from error
        notes["call in Python's notation read as JSON"] += 1
    return read_call(value, field, notes)


def python_value(text: str) -> Any:
    """Parse a Python literal that is also a JSON value; return ``None`` for any other text, or for a key twice."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an unknown backslash escape is no concern of the user's
            tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
        objects = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        if any(len(ast.literal_eval(node)) < len(node.keys) for node in objects):
            return None
        check_json(value)
        # Tuples become lists, and keys strings, as in any JSON; ``{1: "a", "1": "b"}`` has one key twice by then.
        return parse_json(json.dumps(value))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def read_reference(record: Mapping[str, Any], notes: Counter[str]) -> Reference:
    """Read a record's known solution: ``reference {answer, calls, sub_answers}``, or ``answer`` alone.

    Raises:
        RecordError: A field has the wrong type.
    """
    given = wanted(record.get("reference") or {}, dict, "reference")
    answer = given.get("answer", record.get("answer"))
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    calls = wanted(given.get("calls") or [], list, "reference.calls")
    sub_answers = []
    for index, entry in enumerate(wanted(given.get("sub_answers") or [], list, "reference.sub_answers")):
        where = f"reference.sub_answers[{index}]"
        pair = wanted(entry, dict, where)
        sub_answers.append(SubAnswer(*(wanted(pair.get(key), str, f"{where}.{key}") for key in ("tool", "answer"))))
    return Reference(
        None if answer is None else wanted(answer, str, "reference.answer"),
        tuple(read_call(call, f"reference.calls[{index}]", notes) for index, call in enumerate(calls)),
        tuple(sub_answers),
    )


def read_environment(record: Mapping[str, Any]) -> EnvironmentSpec | None:
    """Read a record's ``environment {class_path, init_args}``, if it has one.

    Raises:
        RecordError: A field has the wrong type.
    """
    if record.get("environment") is None:
        return None
    value = wanted(record["environment"], dict, "environment")
    class_path = wanted(value.get("class_path"), str, "environment.class_path")
    return EnvironmentSpec(class_path, wanted(value.get("init_args") or {}, dict, "environment.init_args"))


class Spoken(NamedTuple):
    """Parts of a teacher's text."""

    reasoning: str
    text: str
    calls: tuple[RequestedCall, ...]


def split_thinking(text: str, field: str) -> tuple[str, str]:
    """Split a text into reasoning and the rest.

    The opening tag may be missing, since some chat templates put it into the prompt. Both parts are stripped.

    Args:
        text: The text.
        field: The field's place.

    Raises:
        RecordError: The thinking is never closed: the teacher was cut off in it.

    >>> split_thinking("<think> Hm. </think> Yes.", "")
    ('Hm.', 'Yes.')
    >>> split_thinking("Just text.", "")
    ('', 'Just text.')
    """
    body = text.strip()
    if body.startswith(_OPEN):
        body = body.removeprefix(_OPEN)
        if _CLOSE not in body:
            raise RecordError("unclosed thinking", field, f"opens {_OPEN} and never closes it")
    reasoning, close, rest = body.partition(_CLOSE)
    return (reasoning.strip(), rest.strip()) if close else ("", body)


def split_text(text: str, field: str, notes: Counter[str]) -> Spoken:
    """Split a teacher's message into reasoning, text and ``<tool_call>`` blocks of one call each.

    Args:
        text: The message.
        field: The field's place.
        notes: Counts of the changes that make it fit.

    Raises:
        RecordError: Thinking or a call is not closed, or a call is malformed.
    """
    reasoning, rest = split_thinking(text, field)
    calls = []
    for number, match in enumerate(_CALL.finditer(rest)):
        if not match.group(2):
            raise RecordError("malformed call", field, f"tool call {number} is not closed with </tool_call>")
        calls.append(RequestedCall(read_call_text(match.group(1), field, notes)))
    return Spoken(reasoning, _CALL.sub("", rest).strip(), tuple(calls))

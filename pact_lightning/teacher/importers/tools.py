"""Schemas of tools: OpenAI's format, bare functions, arguments listed by name, and lists in a system prompt."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pact_lightning.teacher.importers.calls import json_or_python
from pact_lightning.teacher.importers.conversation import Reading, RecordError, Said
from pact_lightning.teacher.importers.fields import decoded, wanted
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.utils.table_nulls import without_nulls, without_nulls_in_tool

_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
}
_JSON_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
# A prompt may speak of the tags ("within <tools></tools> XML tags") before it uses them.
_TAGGED = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
_HEADING = re.compile(r"^#+ Tools\s*$", re.MULTILINE)
_LIST = re.compile(r"\[\s*\{\s*['\"](?:name|type|description)['\"]\s*:")
_DECODER = json.JSONDecoder()
BARE_CALLS = frozenset({"Python calls (ToolACE)", "calls as the whole text"})
"""Forms of calls that a system prompt explains, with the tools as JSON and no tags around them."""


def read_tools(value: Any, field: str, reading: Reading) -> tuple[ToolSchema, ...]:
    """Read tools in OpenAI's format, and note the schema of each.

    Bare function schemas (``name, description, parameters``) are wrapped. Parameters listed by name become a JSON
    schema, and Python's names of types JSON Schema's.

    Args:
        value: A list, its JSON text, or ``None``.
        field: The field's place.
        reading: Gets the tools' schemas, and the counts of changes.

    Raises:
        RecordError: A tool has no name, or its parameters are no object.
    """
    tools = []
    for index, entry in enumerate([] if value is None else decoded(value, list, field)):
        where = f"{field}[{index}]"
        given = decoded(entry, dict, where)
        bare = given.get("function") is None
        function = dict(given if bare else wanted(given["function"], dict, f"{where}.function"))
        if bare and function.get("type") == "function":
            del function["type"]
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RecordError("broken tool schema", f"{where}.name", "must be a string that is not empty")
        schema = function.get("parameters")
        if schema is None:
            schema = function.pop("input_schema", None) or {"type": "object", "properties": {}}
        function["parameters"] = wanted(schema, dict, f"{where}.parameters")
        tool = without_nulls_in_tool({"type": "function", "function": function})
        if tool["function"] != function:
            reading.notes["tool with nulls of a table taken out"] += 1
        tool["function"]["parameters"] = _json_schema(tool["function"]["parameters"], reading)
        reading.parameters[name] = tool["function"]["parameters"]
        tools.append(tool)
    return tuple(tools)


def _json_schema(parameters: dict[str, Any], reading: Reading) -> dict[str, Any]:
    by_name = parameters and all(isinstance(entry, Mapping) for entry in parameters.values())
    if by_name and not parameters.keys() & {"properties", "$defs", "$ref", "not"}:
        reading.notes["parameters listed by name made a JSON schema"] += 1
        return {"type": "object", "properties": {name: listed_parameter(entry) for name, entry in parameters.items()}}
    named: dict[str, Any] = _with_json_types(parameters)
    if named != parameters:
        reading.notes["types of a tool's schema named as in JSON Schema"] += 1
    return named


def listed_parameter(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a parameter ``{"type": "List[int], optional", "description", "default"}``.

    A type without a JSON name (``date``, say) moves into the description; an empty default is left out.

    >>> listed_parameter({"type": "int, optional", "description": "How many.", "default": ""})
    {'description': 'How many.', 'type': 'integer'}
    """
    schema: dict[str, Any] = without_nulls({key: value for key, value in entry.items() if key != "type"})
    if schema.get("default") == "":
        del schema["default"]
    kind = entry.get("type")
    if isinstance(kind, str):
        base = re.split(r"[\[,]", kind, maxsplit=1)[0].strip().lower()
        known = _TYPES.get(base, base if base in _JSON_TYPES else None)
        words = str(schema.get("description", ""))
        schema |= {"type": known} if known else {"description": f"{words} (type: {kind})".strip()}
    elif kind is not None:
        schema["type"] = kind
    return schema


def _with_json_types(schema: Any) -> Any:
    """Return a schema with JSON Schema's names of types; names of properties and values stay as they are."""
    if isinstance(schema, list):
        return [_with_json_types(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            found[key] = _TYPES.get(value, value)
        elif key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, Mapping):
            found[key] = {name: _with_json_types(item) for name, item in value.items()}
        else:
            found[key] = value if key in ("default", "const", "enum", "examples") else _with_json_types(value)
    return found


def tools_of_prompts(
    said: list[Said], tools: tuple[ToolSchema, ...], reading: Reading
) -> tuple[list[Said], tuple[ToolSchema, ...]]:
    """Take the lists of tools out of system messages.

    A system prompt that lists the tools explains the format of calls, which a policy's own chat template does again.
    Only its text before a heading "# Tools" (Qwen's form) is kept, and nothing of one without that heading [D]; both
    are counted. A list without ``<tools>`` tags counts only where the record's calls have no tags either.

    Args:
        said: The messages.
        tools: The record's own tools; only without them those of a prompt are used.
        reading: Gets the tools' schemas, and the counts of changes.

    Returns:
        The messages left, and the tools.

    Raises:
        RecordError: What stands between ``<tools>`` and ``</tools>`` lists no tools.
    """
    kept: list[Said] = []
    for message in said:
        listed = _listed(message.text) if message.role == "system" else None
        if listed is None or not (listed[1] or reading.forms & BARE_CALLS):
            kept.append(message)
            continue
        text, tagged = listed
        if not tools:
            place = f"{message.where}<tools>" if tagged else message.where
            tools = read_tools(_values(text, message.where), place, reading)
        reading.notes["system prompt left out, since it lists the tools"] += 1
        heading = _HEADING.search(message.text)
        before = message.text[: heading.start()].strip() if heading else ""
        kept += [Said("system", message.where, before)] if before else []
    return kept, tools


def hint_tools(texts: Iterable[str], reading: Reading) -> None:
    """Note the names and schemas of the tools that system prompts list, without an error where they list none."""
    for text in texts:
        listed = _listed(text)
        values = None if listed is None else json_or_python(listed[0])
        for tool in values if isinstance(values, list) else ():
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                reading.parameters.setdefault(function["name"], function.get("parameters") or {})


def _listed(text: str) -> tuple[str, bool] | None:
    """Return the list of tools in a system prompt, and whether it stands between tags."""
    tagged = _TAGGED.search(text)
    if tagged is not None:
        return tagged[1], True
    start = _LIST.search(text)
    if start is None:
        return None
    try:
        value, end = _DECODER.raw_decode(text, start.start())
    except (ValueError, RecursionError):
        return None
    are_tools = all(
        isinstance(item, dict) and ("parameters" in item or isinstance(item.get("function"), dict)) for item in value
    )
    return (text[start.start() : end], False) if are_tools else None


def _values(text: str, field: str) -> list[Any]:
    """Read tools as a JSON list, as one object a line, or as either in Python's notation."""
    for pieces in ([text], [line for line in text.splitlines() if line.strip()]):
        values = [json_or_python(piece) for piece in pieces]
        if all(isinstance(value, dict) for value in values):
            return values
        if len(values) == 1 and isinstance(values[0], list):
            return list(values[0])
    raise RecordError("broken tool schema", field, "the text between <tools> and </tools> is no list of JSON objects")

"""Rows of ToolRL: one teacher turn each, behind a dialogue whose history is text.

The tagged history of a row ``{instruction, input, output}`` becomes messages, and ``output`` the last turn [D]. A row
whose ``output`` is a reply is a whole conversation. A row whose ``output`` calls tools ends without their responses: it
can be segmented (``traces segment``), and becomes a task only with an environment that runs the calls (``traces build
--environment``). Without one such rows are counted and left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pact_lightning.teacher.importers.conversation import Conversation, RecordError, RequestedCall, Said, assemble
from pact_lightning.teacher.importers.fields import conversation_of, decoded, needed, read_call_text, wanted
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.utils.json_text import JsonTextError, parse_json

_HEADING = "**Dialogue Records History**"
_TAG = re.compile(r"\s*<(user|think|tool_call|obs|response)>")
_TOOL = re.compile(
    r"^\d+\. Name: (?P<name>.*)\nDescription: (?P<description>(?:.|\n)*?)\nParameters: (?P<parameters>.*)$",
    re.MULTILINE,
)
_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}


def conversation_from_toolrl(record: Any) -> Conversation:
    """Read a row ``{instruction, input, output}``.

    The instruction explains the output format and the tools. Only the tools are kept, since a policy's own chat
    template explains both again [D].

    Args:
        record: The row. Those three are required strings. ``id``, ``environment``, ``reference`` or ``answer``,
            ``kind`` and ``metadata`` are optional.

    Returns:
        The conversation; its ``dialogue.open_turn`` is a last turn that calls tools.

    Raises:
        RecordError: The row is broken; the error names the field and the mistake.
    """
    fields = ("instruction", "input", "output")
    record = needed(record, *fields)
    for field in fields:
        wanted(record[field], str, field)
    notes: Counter[str] = Counter()
    history = record["input"].strip().removeprefix(_HEADING)
    said = [*_said(history, "input", notes), *_said(record["output"], "output", notes)]
    return conversation_of(record, assemble(said, notes), _tools(record["instruction"]), notes)


def _said(text: str, field: str, notes: Counter[str]) -> Iterator[Said]:
    """Read messages from tagged text; think, calls and response up to the next user or observation are one turn."""
    turn: dict[str, str] = {}
    count = 0
    for tag, content in _blocks(text, field):
        where = f"{field}<{tag}>[{count}]"
        count += 1
        if tag in ("user", "obs") or tag in turn or (tag == "think" and turn):
            yield from _teacher(turn, field, count, notes)
            turn = {}
        if tag == "user":
            yield Said("user", where, content)
        elif tag == "obs":
            yield from _responses(content, where)
        else:
            turn[tag] = content
    yield from _teacher(turn, field, count, notes)


def _blocks(text: str, field: str) -> Iterator[tuple[str, str]]:
    """Yield the tagged blocks in order; each ends at its own closing tag, so one may quote another's."""
    at = 0
    while text[at:].strip():
        match = _TAG.match(text, at)
        if match is None:
            problem = f"holds text outside its tags at character {at}: {text[at:].strip()[:60]!r}"
            raise RecordError("text outside the tags", field, problem)
        tag = match.group(1)
        end = text.find(f"</{tag}>", match.end())
        if end < 0:
            raise RecordError("unclosed tag", field, f"opens <{tag}> at character {match.start()} and never closes it")
        yield tag, text[match.end() : end].strip()
        at = end + len(f"</{tag}>")


def _teacher(turn: dict[str, str], field: str, number: int, notes: Counter[str]) -> Iterator[Said]:
    if not turn:
        return
    where = f"{field}<tool_call>[{number - 1}]"
    lines = [line for line in turn.get("tool_call", "").splitlines() if line.strip()]
    calls = tuple(RequestedCall(read_call_text(line, where, notes)) for line in lines)
    yield Said("assistant", where, turn.get("response", ""), turn.get("think", ""), calls)


def _responses(text: str, where: str) -> Iterator[Said]:
    """Read an observation: a list of ``{"name", "results"}``, one per call."""
    for index, entry in enumerate(decoded(text, list, where)):
        response = wanted(entry, dict, f"{where}[{index}]")
        if "results" not in response:
            raise RecordError("broken tool response", f"{where}[{index}].results", "is missing")
        name = wanted(response.get("name") or "", str, f"{where}[{index}].name")
        yield Said("tool", f"{where}[{index}]", _as_text(response["results"]), tool=name)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tools(instruction: str) -> tuple[ToolSchema, ...]:
    tools = []
    for number, match in enumerate(_TOOL.finditer(instruction)):
        field = f"instruction, tool {number + 1}"
        try:
            parameters = parse_json(match["parameters"])
        except JsonTextError as error:
            raise RecordError("broken tool schema", field, f"the parameters' text {error}") from error
        properties = {
            name: _property(wanted(entry, dict, f"{field}, parameter {name}"))
            for name, entry in wanted(parameters, dict, field).items()
        }
        tools.append(
            {
                "type": "function",
                "function": {
                    "name": match["name"].strip(),
                    "description": match["description"].strip(),
                    "parameters": {"type": "object", "properties": properties},
                },
            }
        )
    return tuple(tools)


def _property(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a parameter, with JSON's names for Python's types and without an empty default."""
    schema = {key: value for key, value in entry.items() if key != "type" and not (key == "default" and value == "")}
    kind = entry.get("type")
    if isinstance(kind, str):
        base = re.split(r"[\[,]", kind, maxsplit=1)[0].strip().lower()
        # A type without a JSON name ("date", say) moves into the description.
        known = _TYPES.get(base)
        words = str(schema.get("description", ""))
        schema |= {"type": known} if known else {"description": f"{words} (type: {kind})".strip()}
    elif kind is not None:
        schema["type"] = kind
    return schema

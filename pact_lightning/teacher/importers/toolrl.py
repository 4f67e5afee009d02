"""Rows of ToolRL: one teacher turn each, behind a dialogue whose history is text.

The tagged history of a row ``{instruction, input, output}`` becomes messages, and ``output`` the last turn [D]. A row
whose ``output`` is a reply is a whole conversation. A row whose ``output`` calls tools ends without their responses: it
can be segmented (``traces segment``), and becomes a task only with an environment that runs the calls (``traces build
--environment``). Without one such rows are counted and left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pact_lightning.dialogue.tool_text import closing_tag
from pact_lightning.teacher.importers.calls import calls_in_text
from pact_lightning.teacher.importers.conversation import Reading, RecordError, Said, Source
from pact_lightning.teacher.importers.fields import decoded, needed, wanted
from pact_lightning.teacher.importers.tools import listed_parameter
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.utils.json_text import JsonTextError, parse_json

_HEADING = "**Dialogue Records History**"
_TAG = re.compile(r"\s*<(user|think|tool_call|obs|response)>")
_TOOL = re.compile(
    r"^\d+\. Name: (?P<name>.*)\nDescription: (?P<description>(?:.|\n)*?)\nParameters: (?P<parameters>.*)$",
    re.MULTILINE,
)


def read_row(record: Mapping[str, Any], reading: Reading) -> Source:
    """Read a row ``{instruction, input, output}``, three strings.

    The instruction explains the output format and the tools. Only the tools are kept, since a policy's own chat
    template explains both again [D].

    Raises:
        RecordError: The row is broken; the error names the field and the mistake.
    """
    fields = ("instruction", "input", "output")
    needed(record, *fields)
    for field in fields:
        wanted(record[field], str, field)
    tools = _tools(record["instruction"])
    reading.parameters |= {str(tool["function"]["name"]): tool["function"]["parameters"] for tool in tools}
    history = record["input"].strip().removeprefix(_HEADING)
    return Source([*_said(history, "input", reading), *_said(record["output"], "output", reading)], tools)


def _said(text: str, field: str, reading: Reading) -> Iterator[Said]:
    """Read messages from tagged text; think, calls and response up to the next user or observation are one turn."""
    turn: dict[str, str] = {}
    count = 0
    for tag, content in _blocks(text, field):
        where = f"{field}<{tag}>[{count}]"
        count += 1
        if tag in ("user", "obs") or tag in turn or (tag == "think" and turn):
            yield from _teacher(turn, field, count, reading)
            turn = {}
        if tag == "user":
            yield Said("user", where, content)
        elif tag == "obs":
            yield from _responses(content, where)
        else:
            turn[tag] = content
    yield from _teacher(turn, field, count, reading)


def _blocks(text: str, field: str) -> Iterator[tuple[str, str]]:
    """Yield the tagged blocks in order; each ends at its own closing tag, so one may quote another's."""
    at = 0
    while text[at:].strip():
        match = _TAG.match(text, at)
        if match is None:
            problem = f"holds text outside its tags at character {at}: {text[at:].strip()[:60]!r}"
            raise RecordError("text outside the tags", field, problem)
        tag = match.group(1)
        end, _ = closing_tag(text, match.end(), f"</{tag}>")
        if end < 0:
            raise RecordError("unclosed tag", field, f"opens <{tag}> at character {match.start()} and never closes it")
        yield tag, text[match.end() : end].strip()
        at = end + len(f"</{tag}>")


def _teacher(turn: dict[str, str], field: str, number: int, reading: Reading) -> Iterator[Said]:
    if not turn:
        return
    where = f"{field}<tool_call>[{number - 1}]"
    calls = calls_in_text(turn["tool_call"], where, reading) if turn.get("tool_call", "").strip() else ()
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
            name: listed_parameter(wanted(entry, dict, f"{field}, parameter {name}"))
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

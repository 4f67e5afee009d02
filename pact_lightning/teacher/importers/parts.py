"""Content of a message: a text, or a list of parts such as ``thinking``, ``text``, ``tool_use`` and ``tool_result``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pact_lightning.teacher.importers.calls import read_call, read_calls
from pact_lightning.teacher.importers.conversation import Reading, RecordError, RequestedCall, Said
from pact_lightning.teacher.importers.fields import read_id, wanted
from pact_lightning.utils.errors import shortened

_TEXT = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
_THINKING = ("thinking", "reasoning")


@dataclass(slots=True)
class Content:
    """Parts of a message.

    Attributes:
        text: Its text.
        reasoning: A teacher's reasoning, where it is a part of its own.
        calls: A teacher's calls.
        responses: Responses of tools; Anthropic's format has them in user messages.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[RequestedCall] = field(default_factory=list)
    responses: list[Said] = field(default_factory=list)


def read_content(value: Any, where: str, reading: Reading) -> Content:
    """Read the content of a message.

    Args:
        value: A string, ``None``, or a list of strings and parts. The text of a part may be called ``value``
            (LLaMA-Factory).
        where: The content's place.
        reading: Gets the forms of the parts, and the counts of changes.

    Raises:
        RecordError: A part is broken or of a kind that is not read, such as an image.
    """
    if value is None:
        return Content()
    if not isinstance(value, list):
        return Content(wanted(value, str, where))
    content = Content()
    thoughts: list[str] = []
    for index, part in enumerate(value):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            content.text += part
        elif kind in _TEXT:
            content.text += _part_text(part, "text", at, reading)
        elif kind in _THINKING:
            reading.forms.add("content blocks")
            thoughts.append(_part_text(part, str(kind), at, reading))
        elif kind == "redacted_thinking":
            reading.notes["redacted thinking left out"] += 1
        elif kind in ("tool_use", "tool_call"):
            reading.forms.add("content blocks")
            content.calls += _calls(part, at, reading)
        elif kind == "tool_result":
            reading.forms.add("content blocks")
            content.responses.append(_response(part, at, reading))
        else:
            named = shortened(kind if isinstance(part, dict) else type(part).__name__, 40)
            raise RecordError(
                "content is not text", at, f"is of the kind {named}; only text, thinking and calls are read"
            )
    content.reasoning = "\n\n".join(thought for thought in thoughts if thought.strip())
    return content


def read_response(value: Any, where: str, reading: Reading) -> str:
    """Read what a tool returned: a text, text parts, or any other JSON value, which is written as JSON.

    Raises:
        RecordError: A part is not text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        content = read_content(value, where, reading)
        if content.calls or content.responses or content.reasoning:
            raise RecordError("content is not text", where, "holds parts that are no text of a tool's response")
        return content.text
    reading.notes["response written as JSON"] += 1
    return json.dumps(value, ensure_ascii=False)


def _part_text(part: Mapping[str, Any], name: str, where: str, reading: Reading) -> str:
    """Return the text of a part, under its own name, as ``text`` or ``value``, or as a summary of text parts."""
    key = next((key for key in (name, "text", "value", "content", "summary") if part.get(key) not in (None, [])), name)
    if key not in part:
        fields = ", ".join(shortened(field, 40) for field in list(part)[:8])
        raise RecordError("unknown form of a part", where, f"has neither `{name}` nor `value`; its fields are {fields}")
    if key == "value":
        reading.forms.add("parts with value (LLaMA-Factory)")
    if key in ("content", "summary") and isinstance(part[key], list):
        return read_content(part[key], f"{where}.{key}", reading).text
    return str(wanted(part.get(key), str, f"{where}.{key}"))


def _calls(part: Mapping[str, Any], where: str, reading: Reading) -> tuple[RequestedCall, ...]:
    if part.get("value") is not None:  # LLaMA-Factory, as text of JSON or as JSON
        reading.forms.add("parts with value (LLaMA-Factory)")
        return read_calls(part["value"], f"{where}.value", reading)
    return (RequestedCall(read_call(part, where, reading), read_id(part, "id", where=where), where),)


def _response(part: Mapping[str, Any], where: str, reading: Reading) -> Said:
    text = read_response(part.get("content", part.get("value")), f"{where}.content", reading)
    call_id = read_id(part, "tool_use_id", "tool_call_id", where=where)
    return Said("tool", where, text, call_id=call_id, failed=part.get("is_error") is True)

"""Conversations in the ShareGPT form with Hermes' tags: ``<tools>``, ``<tool_call>``, ``<tool_response>``."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pact_lightning.teacher.importers.conversation import Conversation, RecordError, Role, Said, assemble
from pact_lightning.teacher.importers.fields import (
    conversation_of,
    needed,
    python_value,
    read_role,
    read_tools,
    split_text,
    wanted,
)
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.utils.json_text import JsonTextError, parse_json

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# A prompt may speak of the tags ("within <tools></tools> XML tags") before it uses them.
_TOOLS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_TOOLS_HEADING = re.compile(r"^#+ Tools\s*$", re.MULTILINE)


def conversation_from_sharegpt(record: Any) -> Conversation:
    """Read a record ``{conversations: [{from, value}], ...}``.

    Tools come from the record's ``tools`` or from ``<tools>`` in the system prompt. A system prompt that lists the
    tools explains the format, which a policy's own chat template does again. Only its text before a heading "# Tools"
    (Qwen's form) is kept, and nothing of one without that heading [D]; both are counted. A response that wraps its
    content as ``{"name", "content"}`` is unwrapped, and its name compared with the call's.

    Args:
        record: The record. ``conversations`` is required. ``tools``, ``system``, ``id``, ``environment``,
            ``reference`` or ``answer``, ``kind`` and ``metadata`` are optional; others are ignored.

    Raises:
        RecordError: The record is broken; the error names the field and the mistake.
    """
    record = needed(record, "conversations")
    notes: Counter[str] = Counter()
    tools = read_tools(record.get("tools") or None, "tools")
    said: list[Said] = []
    if record.get("system"):
        said.append(Said("system", "system", wanted(record["system"], str, "system")))
    for index, entry in enumerate(wanted(record["conversations"], list, "conversations")):
        said += _said(entry, f"conversations[{index}]", notes)
    kept: list[Said] = []
    for message in said:
        if message.role == "system" and (listed := _TOOLS.search(message.text)):
            tools = tools or _tools_in_text(listed.group(1), f"{message.where}.value")
            notes["system prompt left out, since it lists the tools"] += 1
            heading = _TOOLS_HEADING.search(message.text)
            before = message.text[: heading.start()].strip() if heading else ""
            kept += [Said("system", message.where, before)] if before else []
        else:
            kept.append(message)
    return conversation_of(record, assemble(kept, notes), tools, notes)


def _said(value: Any, where: str, notes: Counter[str]) -> Iterator[Said]:
    entry = wanted(value, dict, where)
    role = read_role(entry.get("from"), _ROLES, f"{where}.from")
    text = wanted(entry.get("value"), str, f"{where}.value")
    if entry["from"] == "function_call":
        text = f"<tool_call>{text}</tool_call>"
    if role == "assistant":
        spoken = split_text(text, f"{where}.value", notes)
        yield Said("assistant", where, spoken.text, spoken.reasoning, spoken.calls)
    elif role == "tool" or _RESPONSE.match(text.strip()):
        # Qwen's template gives responses in a user message.
        yield from _responses(text, where, notes)
    else:
        yield Said(role, where, text)


def _responses(text: str, where: str, notes: Counter[str]) -> Iterator[Said]:
    """Read a tool message: one response without tags, or several with tags."""
    blocks = _RESPONSE.findall(text)
    if blocks and _RESPONSE.sub("", text).strip():
        problem = "holds text outside <tool_response> and </tool_response>"
        raise RecordError("broken tool response", f"{where}.value", problem)
    for block in blocks or [text]:
        name, content = _unwrapped(block, notes)
        yield Said("tool", where, content, tool=name)


def _unwrapped(block: str, notes: Counter[str]) -> tuple[str, str]:
    """Return name and content of a response ``{"name", "content"}``; else an empty name and the whole text."""
    try:
        value = parse_json(block)
    except JsonTextError:
        value = python_value(block) if block.lstrip().startswith("{") else None
    if not isinstance(value, dict) or not {"name", "content"} <= value.keys() <= {"name", "content", "tool_call_id"}:
        return "", block
    if not isinstance(value["name"], str):
        return "", block
    notes["response taken out of its wrapping"] += 1
    content = value["content"]
    return value["name"], content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _tools_in_text(text: str, field: str) -> tuple[ToolSchema, ...]:
    """Read tools as a JSON list, as one object a line, or as either in Python's notation."""
    lines = [line for line in text.splitlines() if line.strip()]
    for candidate in ([text], lines):
        values = [_value(piece) for piece in candidate]
        if all(isinstance(value, dict) for value in values):
            return read_tools(values, f"{field}<tools>")
        if len(values) == 1 and isinstance(values[0], list):
            return read_tools(values[0], f"{field}<tools>")
    raise RecordError("broken tool schema", field, "the text between <tools> and </tools> is no list of JSON objects")


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except JsonTextError:
        return python_value(text)

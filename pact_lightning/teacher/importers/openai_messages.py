"""Conversations in OpenAI's message format."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pact_lightning.teacher.importers.conversation import Conversation, RecordError, RequestedCall, Role, Said, assemble
from pact_lightning.teacher.importers.fields import (
    conversation_of,
    needed,
    read_call,
    read_id,
    read_role,
    read_tools,
    split_text,
    wanted,
)
from pact_lightning.utils.errors import shortened

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def conversation_from_openai(record: Any) -> Conversation:
    """Read a record ``{messages, tools, ...}``.

    Calls may come as ``tool_calls`` (arguments as JSON text or as an object), as the older ``function_call``, or as
    ``<tool_call>`` tags in the text. Reasoning may come as ``reasoning_content`` or ``reasoning``, which leaves the
    text unparsed, or between ``<think>`` tags. Tool messages are matched by ``tool_call_id``, else by order. The
    package's own records of rollouts are of this format.

    Args:
        record: The record. ``messages`` is required. ``tools`` (or ``functions``), ``id`` (or ``task_id``),
            ``environment``, ``reference`` or ``answer``, ``kind`` and ``metadata`` are optional; others are ignored.

    Raises:
        RecordError: The record is broken; the error names the field and the mistake.
    """
    notes: Counter[str] = Counter()
    messages = wanted(needed(record, "messages")["messages"], list, "messages")
    said = [_said(message, f"messages[{index}]", notes) for index, message in enumerate(messages)]
    dialogue = assemble(said, notes)
    tools = read_tools(record.get("tools", record.get("functions")), "tools")
    return conversation_of(record, dialogue, (*tools, *dialogue.tools), notes, ids=("id", "task_id"))


def _said(value: Any, where: str, notes: Counter[str]) -> Said:
    message = wanted(value, dict, where)
    role = read_role(message.get("role"), _ROLES, f"{where}.role")
    text = _text(message.get("content"), f"{where}.content")
    if role == "assistant":
        return _assistant(message, text, where, notes)
    if role == "tool":
        return Said(
            "tool",
            where,
            text,
            call_id=read_id(message, "tool_call_id"),
            tool=wanted(message.get("name") or "", str, f"{where}.name"),
            failed=message.get("error") is True,
        )
    return Said(role, where, text, tools=read_tools(message.get("tools"), f"{where}.tools"))


def _assistant(message: Mapping[str, Any], text: str, where: str, notes: Counter[str]) -> Said:
    if message.get("malformed_calls"):
        raise RecordError("malformed call", f"{where}.malformed_calls", "records calls that could not be read")
    calls = _tool_calls(message, where, notes)
    named = next((key for key in ("reasoning_content", "reasoning") if message.get(key) is not None), None)
    if named is not None:
        return Said("assistant", where, text, wanted(message[named], str, f"{where}.{named}"), calls)
    spoken = split_text(text, f"{where}.content", notes)
    if spoken.calls and calls:
        problem = "holds <tool_call> tags beside the message's own tool_calls; which of them are the calls?"
        raise RecordError("malformed call", f"{where}.content", problem)
    return Said("assistant", where, spoken.text, spoken.reasoning, calls or spoken.calls)


def _tool_calls(message: Mapping[str, Any], where: str, notes: Counter[str]) -> tuple[RequestedCall, ...]:
    calls = []
    for index, entry in enumerate(wanted(message.get("tool_calls") or [], list, f"{where}.tool_calls")):
        at = f"{where}.tool_calls[{index}]"
        request = wanted(entry, dict, at)
        bare = "function" not in request
        call = read_call(request if bare else request["function"], at if bare else f"{at}.function", notes)
        calls.append(RequestedCall(call, read_id(request, "id"), at))
    if message.get("function_call") is not None:
        at = f"{where}.function_call"
        calls.append(RequestedCall(read_call(message["function_call"], at, notes), where=at))
    return tuple(calls)


def _text(content: Any, field: str) -> str:
    """Return the text of a message: of a string, ``None``, or a list of text parts."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return str(wanted(content, str, field))
    parts = []
    for index, part in enumerate(content):
        at = f"{field}[{index}]"
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RecordError("content is not text", at, f"must be a text part, got {shortened(kind, 40)}")
        parts.append(wanted(part.get("text"), str, f"{at}.text"))
    return "".join(parts)

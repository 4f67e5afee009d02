"""Conversations in OpenAI's message format, and tasks with their traces written in it."""

import json
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
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTurn
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


def openai_record(task: Task) -> dict[str, Any]:
    """Convert a task with its trace to a record that :func:`conversation_from_openai` reads back.

    The format has no place for chunk types and turn patterns; they are found again by rule when it is read.
    """
    messages = [dict(message) for message in task.prompt.messages]
    coming = iter(task.prompt.follow_ups)
    turns = task.trace.turns if task.trace else ()
    for index, turn in enumerate(turns):
        messages += _turn_messages(index, turn)
        if turn.reply is not None:
            user = next(coming)
            tools = {"tools": [dict(tool) for tool in user.tools]} if user.tools else {}
            messages.append({"role": "user", "content": user.content, **tools})
    if task.trace and task.trace.final:
        final = task.trace.final
        messages.append({"role": "assistant", "content": final.answer, "reasoning_content": final.reasoning})
    reference = task.reference
    return {
        "id": task.id,
        "messages": messages,
        "tools": [dict(tool) for tool in task.prompt.tools],
        "environment": {
            "class_path": task.prompt.environment.class_path,
            "init_args": dict(task.prompt.environment.init_args),
        },
        "reference": {
            "answer": reference.answer,
            "calls": [dict(call) for call in reference.calls],
            "sub_answers": [{"tool": sub.tool, "answer": sub.answer} for sub in reference.sub_answers],
        },
        "kind": task.kind,
        "metadata": dict(task.metadata),
    }


def _turn_messages(index: int, turn: ExpertTurn) -> list[dict[str, Any]]:
    assistant: dict[str, Any] = {"role": "assistant", "content": turn.reply, "reasoning_content": turn.reasoning}
    if not turn.calls:
        return [assistant]
    ids = [f"call_{index}_{number}" for number in range(len(turn.calls))]
    assistant["tool_calls"] = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for id_, call in zip(ids, turn.calls, strict=True)
    ]
    responses = zip(ids, turn.responses, strict=True)
    return [assistant, *({"role": "tool", "tool_call_id": id_, "content": text} for id_, text in responses)]


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

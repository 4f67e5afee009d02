"""Messages of every format that has a list of them, read one by one into the common form."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pact_lightning.dialogue.tool_text import CALL_OPEN
from pact_lightning.dialogue.turn_text import MARKS, THINK_CLOSE, THINK_OPEN
from pact_lightning.teacher.importers.calls import calls_in_text, json_or_python, read_calls, requested_call
from pact_lightning.teacher.importers.conversation import Reading, RecordError, RequestedCall, Said
from pact_lightning.teacher.importers.fields import decoded, read_id, wanted
from pact_lightning.teacher.importers.parts import Content, read_content, read_response
from pact_lightning.teacher.importers.tagged_text import split_text
from pact_lightning.teacher.importers.tools import read_tools
from pact_lightning.utils.errors import shortened
from pact_lightning.utils.json_text import JsonTextError, parse_json

Kind = Literal["system", "user", "assistant", "tool", "call", "thought"]
_KINDS: dict[str, Kind] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "reasoning": "thought",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call_output": "tool",
}
_NAMED_ROLES = {
    "tool_call": "tool_call roles (ms-swift)",
    "tool_response": "tool_call roles (ms-swift)",
    "function_call": "function_call messages (LLaMA-Factory)",
}
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_REASONING = ("reasoning_content", "reasoning")


def read_messages(entries: Sequence[Any], field: str, reading: Reading) -> list[Said]:
    """Read messages of any format.

    A message is told by its ``role`` (or ``from``, or ``type``). Its text stands under ``content`` or ``value``, as a
    string or as parts. Calls come as ``tool_calls``, ``function_call``, as parts, as messages of their own, in
    ``<tool_call>`` tags, or as the whole text; reasoning as ``reasoning_content`` or ``reasoning``, as parts, as
    messages of their own, or in ``<think>`` tags.

    Args:
        entries: The messages.
        field: The name of their list.
        reading: What is known of the record; gets the forms met, and the counts of changes.

    Returns:
        The messages, in the same order; one with several responses becomes several.

    Raises:
        RecordError: A message is broken; the error names the field and the mistake.
    """
    opened = [_opened(entry, f"{field}[{index}]") for index, entry in enumerate(entries)]
    said: list[Said] = []
    pending: list[str] = []  # names of the calls that wait for a response
    for index, (entry, kind) in enumerate(opened):
        where = f"{field}[{index}]"
        following = opened[index + 1][1] if index + 1 < len(opened) else None
        if kind in ("assistant", "call", "thought"):
            if said and said[-1].role != "assistant":
                pending.clear()
            message = _teachers(entry, kind, where, following, reading)
            if kind != "thought" or message.reasoning:
                pending += [request.call["name"] for request in message.calls]
                said.append(message)
            continue
        for message in _others(entry, kind, where, pending, reading):
            said.append(message)
            if message.role == "tool" and pending:
                pending.pop(0)
    return said


def _opened(value: Any, where: str) -> tuple[Mapping[str, Any], Kind]:
    """Return a message and what it is."""
    entry: dict[str, Any] = wanted(value, dict, where)
    if isinstance(entry.get("data"), dict) and "type" in entry:  # LangChain's messages_to_dict
        entry = {**entry["data"], "type": entry["type"]}
    key = next((key for key in ("role", "from", "type") if entry.get(key) is not None), None)
    if key is None:
        fields = ", ".join(map(repr, list(entry)[:8])) or "none"
        problem = f"has neither `role` and `content` nor `from` and `value`; its fields are {fields}"
        raise RecordError("unknown form of a message", where, problem)
    name = entry[key]
    kind = _KINDS.get(name.lower()) if isinstance(name, str) else None
    if kind is None:
        problem = f"must be one of {', '.join(_KINDS)}, got {shortened(name, 40)}"
        raise RecordError("unknown role", f"{where}.{key}", problem)
    return entry, kind


def note_forms(entries: Sequence[Any], usual: str, reading: Reading) -> None:
    """Note how the messages name their speakers, where it is not the format's usual way.

    Args:
        entries: The messages.
        usual: The field that usually names the speaker.
        reading: Gets the forms.
    """
    for entry in entries:
        if isinstance(entry, dict):
            key = next((key for key in ("role", "from", "type") if entry.get(key) is not None), usual)
            if key != usual:
                reading.forms.add({"role": "role and content", "from": "from and value"}.get(key, "type as role"))
            named = entry.get(key)
            if isinstance(named, str) and named in _NAMED_ROLES:
                reading.forms.add(_NAMED_ROLES[named])


def _body(entry: Mapping[str, Any], where: str) -> tuple[Any, str]:
    """Return the content of a message, and its place."""
    key = next((key for key in ("content", "value", "output", "summary") if entry.get(key) not in (None, [])), None)
    key = key or next((key for key in ("content", "value") if key in entry), "content")
    return entry.get(key), f"{where}.{key}"


def _teachers(entry: Mapping[str, Any], kind: Kind, where: str, following: Kind | None, reading: Reading) -> Said:
    value, place = _body(entry, where)
    if kind == "call":
        return _calls(entry, value, where, place, reading)
    content = read_content(value, place, reading)
    if kind == "thought":
        text = (content.text or content.reasoning).strip()
        if not text:
            # A summary that was not asked for, or content that is encrypted: there is nothing to learn from.
            reading.notes["reasoning without a text left out"] += 1
        return Said("assistant", where, reasoning=text)
    if content.responses:
        raise RecordError("content is not text", place, "holds a tool's response in a message of the assistant")
    for key in ("malformed_calls", "invalid_tool_calls"):  # the package's own rollouts, and LangChain
        if entry.get(key):
            raise RecordError("malformed call", f"{where}.{key}", "records calls that could not be read")
    calls = _one_of(_tool_calls(entry, where, reading), tuple(content.calls), place)
    given = _given_reasoning(entry, where, content, reading)
    text = content.text
    if given and not text.lstrip().startswith(THINK_OPEN) and CALL_OPEN not in text:
        return Said("assistant", where, text, given, calls)
    spoken = split_text(text, place, reading, calls_follow=bool(calls) or following == "call")
    if any(entry.get(key) is not None for key in _REASONING) and not any(mark in text for mark in MARKS):
        spoken = spoken._replace(text=text)  # the record keeps parts apart: white space around its text is the text's
    if given and spoken.reasoning and spoken.reasoning != given.strip():
        reading.notes["thinking in the text put behind the reasoning"] += 1
        given = f"{given}\n\n{spoken.reasoning}"
    calls = _one_of(calls, spoken.calls, place)
    said = Said("assistant", where, spoken.text, given or spoken.reasoning, calls)
    return said if calls else _with_bare_calls(said, place, following, reading)


def _given_reasoning(entry: Mapping[str, Any], where: str, content: Content, reading: Reading) -> str:
    """Return the reasoning that has a field or parts of its own; an empty field counts as none."""
    for key in _REASONING:
        if entry.get(key) is not None:
            text: str = wanted(entry[key], str, f"{where}.{key}")
            if text.strip():
                return text
    return content.reasoning


def _one_of(
    calls: tuple[RequestedCall, ...], others: tuple[RequestedCall, ...], place: str
) -> tuple[RequestedCall, ...]:
    """Return the calls of a message that may give them twice, once in each of two forms."""
    if calls and others and [request.call for request in calls] != [request.call for request in others]:
        problem = "holds other calls than the message's own tool_calls; which ones are the calls?"
        raise RecordError("malformed call", place, problem)
    return calls or others


def _with_bare_calls(said: Said, place: str, following: Kind | None, reading: Reading) -> Said:
    """Read a text that is nothing but calls: a response follows, or every name is that of a known tool."""
    text = said.text.strip()
    if not text.startswith(("[", "{")):
        return said
    trial = Reading(parameters=reading.parameters)
    try:
        calls = calls_in_text(text, place, trial)
    except RecordError as error:
        return Said("assistant", said.where, said.text, said.reasoning, unread=f"its text is no call: {error.problem}")
    if following != "tool" and not all(request.call["name"] in reading.parameters for request in calls):
        return said
    reading.notes.update(trial.notes)
    reading.forms |= trial.forms or {"calls as the whole text"}
    return Said("assistant", said.where, "", said.reasoning, calls)


def _calls(entry: Mapping[str, Any], value: Any, where: str, place: str, reading: Reading) -> Said:
    """Read a message that is nothing but calls, perhaps behind thinking."""
    if "name" in entry and "arguments" in entry:  # an item of OpenAI's Responses
        call = requested_call({key: entry.get(key) for key in ("name", "arguments")}, where, reading)
        call_id = read_id(entry, "call_id", "id", where=where)
        return Said("assistant", where, calls=(RequestedCall(call.call, call_id, where),))
    if not isinstance(value, str):
        return Said("assistant", where, calls=read_calls(value, place, reading))
    if not value.lstrip().startswith("<") and (THINK_CLOSE not in value or value.lstrip().startswith(("{", "["))):
        return Said("assistant", where, calls=read_calls(value, place, reading))
    spoken = split_text(value, place, reading)
    calls = spoken.calls or calls_in_text(spoken.text, place, reading)
    return Said("assistant", where, spoken.text if spoken.calls else "", spoken.reasoning, calls)


def _tool_calls(message: Mapping[str, Any], where: str, reading: Reading) -> tuple[RequestedCall, ...]:
    given = message.get("tool_calls")
    at = f"{where}.tool_calls"
    listed = [] if given in (None, "") else decoded(given, list, at)
    calls = [requested_call(entry, f"{at}[{index}]", reading) for index, entry in enumerate(listed)]
    if message.get("function_call") is not None:
        calls += read_calls(message["function_call"], f"{where}.function_call", reading)
    return tuple(calls)


def _others(
    entry: Mapping[str, Any], kind: Kind, where: str, pending: Sequence[str], reading: Reading
) -> Iterator[Said]:
    """Read a message that is not the teacher's."""
    value, place = _body(entry, where)
    if kind == "tool":
        yield from _tool_message(entry, where, pending, reading)
        return
    content = read_content(value, place, reading)
    if content.calls or content.reasoning or (kind == "system" and content.responses):
        raise RecordError("content is not text", place, f"holds calls or thinking in a message of the {kind}")
    yield from content.responses
    if kind == "user" and _RESPONSE.match(content.text.strip()):
        # Qwen's template gives responses in a user message.
        yield from _tagged_responses(content.text, where, place, reading)
    elif content.text.strip() or not content.responses:
        role: Literal["system", "user"] = "system" if kind == "system" else "user"
        tools = entry.get("tools")
        yield Said(role, where, content.text, tools=read_tools(tools or None, f"{where}.tools", reading))


def _tool_message(entry: Mapping[str, Any], where: str, pending: Sequence[str], reading: Reading) -> Iterator[Said]:
    value, place = _body(entry, where)
    text = read_response(value, place, reading)
    call_id = read_id(entry, "tool_call_id", "call_id", where=where)
    named = wanted(entry.get("name") or "", str, f"{where}.name")
    failed = entry.get("error") is True or entry.get("is_error") is True or entry.get("status") == "error"
    if not call_id and _RESPONSE.search(text):
        yield from _tagged_responses(text, where, place, reading)
    elif not call_id and (results := _results(text, pending)) is not None:
        reading.notes["responses taken out of a list of names and results"] += 1
        for result in results:
            yield Said("tool", where, result)
    else:
        name, content = ("", text) if call_id or "from" not in entry else _unwrapped(text, reading)
        yield Said("tool", where, content, call_id=call_id, tool=named or name, failed=failed)


def _tagged_responses(text: str, where: str, place: str, reading: Reading) -> Iterator[Said]:
    blocks = _RESPONSE.findall(text)
    if _RESPONSE.sub("", text).strip():
        raise RecordError("broken tool response", place, "holds text outside <tool_response> and </tool_response>")
    for block in blocks:
        name, content = _unwrapped(block, reading)
        yield Said("tool", where, content, tool=name)


def _results(text: str, pending: Sequence[str]) -> list[str] | None:
    """Return the responses in a list ``[{"name", "results"}]`` that names the pending calls in their order."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parse_json(text)
    except JsonTextError:
        return None
    keys = [set(item) if isinstance(item, dict) else set() for item in value]
    if any(found != {"name", "results"} for found in keys) or [item["name"] for item in value] != list(pending):
        return None
    return [_as_text(item["results"]) for item in value]


def _unwrapped(block: str, reading: Reading) -> tuple[str, str]:
    """Return name and content of a response ``{"name", "content"}``; else an empty name and the whole text."""
    value = json_or_python(block) if block.lstrip().startswith("{") else None
    if not isinstance(value, dict) or not {"name", "content"} <= value.keys() <= {"name", "content", "tool_call_id"}:
        return "", block
    if not isinstance(value["name"], str):
        return "", block
    reading.notes["response taken out of its wrapping"] += 1
    return value["name"], _as_text(value["content"])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

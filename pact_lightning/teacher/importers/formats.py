"""Formats of records, each told by its fields and read into the common form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pact_lightning.teacher.importers.assembly import assemble
from pact_lightning.teacher.importers.calls import read_calls
from pact_lightning.teacher.importers.conversation import Conversation, Reading, RecordError, Said, Source
from pact_lightning.teacher.importers.fields import decoded, needed, wanted
from pact_lightning.teacher.importers.messages import note_forms, read_messages
from pact_lightning.teacher.importers.record import conversation_of
from pact_lightning.teacher.importers.toolrl import read_row
from pact_lightning.teacher.importers.tools import hint_tools, read_tools, tools_of_prompts
from pact_lightning.types.prompt import ToolSchema

Format = Literal["auto", "openai", "sharegpt", "responses", "xlam", "toolrl"]


@dataclass(frozen=True, slots=True)
class _Format:
    """Format of records.

    Attributes:
        marks: Fields by which it is told; one of them must be there.
        read: Reader of a record's messages and tools; it raises :class:`RecordError` for a broken one.
    """

    marks: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Reading], Source]


def read_conversation(record: Any, format: Format = "auto", tools: Sequence[ToolSchema] = ()) -> Conversation:
    """Read one record.

    Args:
        record: A JSON value.
        format: A key of :data:`FORMATS`; ``auto`` recognises it by the record's fields.
        tools: The tools of a record that lists none.

    Raises:
        RecordError: The record is broken, or of no known format.
    """
    fields = wanted(record, dict, "(the record)")
    name = _recognised(fields) if format == "auto" else format
    reading = Reading(parameters={str(tool["function"]["name"]): tool["function"].get("parameters") for tool in tools})
    source = FORMATS[name].read(fields, reading)
    dialogue = assemble(source.said, reading.notes)
    form = " + ".join([name, *sorted(reading.forms)])
    return conversation_of(fields, dialogue, (*(source.tools or tools), *dialogue.tools), reading, form)


def _recognised(record: Mapping[str, Any]) -> str:
    for name, format in FORMATS.items():
        if any(record.get(mark) is not None for mark in format.marks):
            return name
    fields = ", ".join(map(repr, list(record)[:8])) or "none"
    marks = ", ".join(mark for format in FORMATS.values() for mark in format.marks)
    raise RecordError(
        "unknown format", "(the record)", f"has no known format: its fields are {fields}, and none is one of {marks}"
    )


def _listed(record: Mapping[str, Any], reading: Reading, *, field: str, usual: str) -> Source:
    """Read a record ``{messages, tools, ...}`` or ``{conversations, tools, system, ...}``.

    Tools stand under ``tools`` or ``functions``, or in the system prompt. A response that wraps its content as
    ``{"name", "content"}`` is unwrapped, and its name compared with the call's.
    """
    value = needed(record, field)[field]
    if isinstance(value, str):
        reading.forms.add("JSON text")
    entries = decoded(value, list, field)
    note_forms(entries, usual, reading)
    return _source(record, {field: entries}, reading, system="system")


def _responses(record: Mapping[str, Any], reading: Reading) -> Source:
    """Read items of OpenAI's Responses: those of ``input``, which may be the user's words alone, then of ``output``."""
    given = record.get("input")
    asked = [{"role": "user", "content": given}] if isinstance(given, str) else wanted(given or [], list, "input")
    answer = "output" if record.get("output") is not None else "items"
    lists = {"input": asked, answer: wanted(record.get(answer) or [], list, answer)}
    return _source(record, lists, reading, system="instructions")


def _source(record: Mapping[str, Any], lists: Mapping[str, list[Any]], reading: Reading, *, system: str) -> Source:
    """Read the messages of some lists, by the fields in which these stand."""
    own = read_tools(record.get("tools") or record.get("functions") or None, "tools", reading)
    before = wanted(record.get(system) or "", str, system)
    first = [entry for entries in lists.values() for entry in entries[:1] if isinstance(entry, dict)]
    prompts = [entry.get("content") or entry.get("value") for entry in first]
    hint_tools([before, *(text for text in prompts if isinstance(text, str))], reading)
    said = [Said("system", system, before)] if before else []
    for field, entries in lists.items():
        said += read_messages(entries, field, reading)
    return Source(*tools_of_prompts(said, own, reading))


def _xlam(record: Mapping[str, Any], reading: Reading) -> Source:
    """Read a row ``{query, answers, tools}``: a user's words, and the calls, which have no responses."""
    needed(record, "query", "answers")
    tools = read_tools(record.get("tools") or None, "tools", reading)
    calls = read_calls(record["answers"], "answers", reading)
    user = Said("user", "query", wanted(record["query"], str, "query"))
    return Source([user, Said("assistant", "answers", calls=calls)], tools)


FORMATS: dict[str, _Format] = {
    "openai": _Format(("messages",), partial(_listed, field="messages", usual="role")),
    "sharegpt": _Format(("conversations",), partial(_listed, field="conversations", usual="from")),
    "xlam": _Format(("answers",), _xlam),
    "toolrl": _Format(("instruction",), read_row),
    "responses": _Format(("input", "output", "items"), _responses),
}
"""Formats by name, in the order in which a record is tried."""

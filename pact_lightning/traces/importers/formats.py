"""Which formats there are, and which of them a record is in."""

from collections.abc import Callable
from typing import Any, Literal

from pact_lightning.traces.importers.conversation import Conversation, RecordError
from pact_lightning.traces.importers.openai_messages import conversation_from_openai
from pact_lightning.traces.importers.sharegpt import conversation_from_sharegpt
from pact_lightning.traces.importers.toolrl import conversation_from_toolrl

Format = Literal["auto", "openai", "sharegpt", "toolrl"]

IMPORTERS: dict[str, Callable[[Any], Conversation]] = {
    "openai": conversation_from_openai,
    "sharegpt": conversation_from_sharegpt,
    "toolrl": conversation_from_toolrl,
}
"""By name the function that reads a record; each raises :class:`RecordError` for one that is broken."""
_MARKS = {"messages": "openai", "conversations": "sharegpt", "instruction": "toolrl"}


def read_conversation(record: Any, format: Format = "auto") -> Conversation:
    """Reads one record.

    Args:
        record: A JSON value.
        format: A key of :data:`IMPORTERS`; ``auto`` tells by the field ``messages``, ``conversations`` or
            ``instruction``.

    Returns:
        The conversation.

    Raises:
        RecordError: The record is broken, or of no known format.
    """
    if format != "auto":
        return IMPORTERS[format](record)
    found = next((name for mark, name in _MARKS.items() if isinstance(record, dict) and mark in record), None)
    if found is None:
        problem = f"is of no known format: it has none of the fields {', '.join(_MARKS)}"
        raise RecordError("unknown format", "(the record)", problem)
    return IMPORTERS[found](record)

"""TODO types.tool_call."""

from dataclasses import dataclass
from typing import Any, TypedDict


class ToolCall(TypedDict):
    """One call of one tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """What one ``<tool_call>`` block holds: a call, or the reason why it is none.

    Attributes:
        call: The call, or ``None`` when the block is malformed.
        error: One sentence that says what is wrong with a malformed block; empty for a good one.
    """

    call: ToolCall | None
    error: str = ""

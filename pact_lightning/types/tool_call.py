"""Tool calls, well-formed and malformed."""

from dataclasses import dataclass
from typing import Any, TypedDict


class ToolCall(TypedDict):
    """One call of one tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """Content of one ``<tool_call>`` block: a call, or the reason why it cannot be read.

    Attributes:
        call: The call; ``None`` for a malformed block.
        error: One sentence on the mistake in a malformed block; empty for a good one.
    """

    call: ToolCall | None
    error: str = ""

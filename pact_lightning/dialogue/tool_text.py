"""Qwen's text format of tools and tool responses, its control tokens apart: for the policy's prompt and a teacher's."""

import json
from collections.abc import Sequence
from typing import Any

from pact_lightning.tasks.prompt import ToolSchema

Piece = tuple[str, bool]
"""A text, and whether it is ours; what is not ours never becomes a control token."""

_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_MORE_TOOLS_HEAD = "From here on you may call these functions as well:\n<tools>"


def json_text(value: Any) -> str:
    """A value as the format writes it."""
    return json.dumps(value, ensure_ascii=False)


def system_pieces(system: str | None, tools: Sequence[ToolSchema]) -> list[Piece]:
    """The content of the system turn: the task's own system message, then the tools and how they are called.

    Args:
        system: The task's own system message, where it has one.
        tools: The tools' schemas; without any, nothing is said about tools.
    """
    own: list[Piece] = [] if system is None else [(system, False)]
    if not tools:
        return own
    between: list[Piece] = [("\n\n", True)] if own else []
    return [*own, *between, (_TOOLS_HEAD, True), *_listed(tools), (_TOOLS_TAIL, True)]


def user_pieces(content: str, tools: Sequence[ToolSchema]) -> list[Piece]:
    """The content of a later user turn; tools that come with it stand at its end, since the system turn is past [D].

    Args:
        content: What the user says; may be empty where there are tools.
        tools: The tools' schemas.
    """
    said: list[Piece] = [(content, False)]
    if not tools:
        return said
    head = ("\n\n" if content else "") + _MORE_TOOLS_HEAD
    return [*said, (head, True), *_listed(tools), ("\n</tools>", True)]


def response_pieces(responses: Sequence[str]) -> list[Piece]:
    """The content of the user turn that brings tool responses, one block each."""
    pieces: list[Piece] = []
    for response in responses:
        start = "\n<tool_response>\n" if pieces else "<tool_response>\n"
        pieces += [(start, True), (response, False), ("\n</tool_response>", True)]
    return pieces


def joined(pieces: Sequence[Piece]) -> str:
    """The pieces as one text."""
    return "".join(text for text, _ in pieces)


def _listed(tools: Sequence[ToolSchema]) -> list[Piece]:
    return [("\n" + json_text(tool), False) for tool in tools]

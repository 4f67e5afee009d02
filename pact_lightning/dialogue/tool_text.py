"""Qwen's text format of tools, tool responses and tool calls, for the prompts of the policy and of a teacher.

The prompts are pieces of text, marked as ours or from outside. Tool calls are parsed strictly from a model's text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pact_lightning.types.prompt import ToolSchema
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.utils.json_text import JsonTextError, check_json, json_end, parse_json

Piece = tuple[str, bool]
"""Text, and ``True`` if it is ours; text from outside never becomes a control token."""

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
MORE_TOOLS_HEAD = "From here on you may call these functions as well:\n<tools>"


def json_text(value: Any) -> str:
    """Write a value as JSON in the form of the format."""
    return json.dumps(value, ensure_ascii=False)


def system_pieces(system: str | None, tools: Sequence[ToolSchema]) -> list[Piece]:
    """Make the content of the system turn: the task's own system message, the tools, and the format of calls.

    Args:
        system: The task's own system message, if any.
        tools: Schemas of the tools; without tools the turn does not mention any.
    """
    own: list[Piece] = [] if system is None else [(system, False)]
    if not tools:
        return own
    between: list[Piece] = [("\n\n", True)] if own else []
    return [*own, *between, (TOOLS_HEAD, True), *_listed(tools), (TOOLS_TAIL, True)]


def user_pieces(content: str, tools: Sequence[ToolSchema]) -> list[Piece]:
    """Make the content of a later user turn; new tools stand at its end, since the system turn is past [D].

    Args:
        content: The user's text; may be empty if there are tools.
        tools: Schemas of the new tools.
    """
    said: list[Piece] = [(content, False)]
    if not tools:
        return said
    head = ("\n\n" if content else "") + MORE_TOOLS_HEAD
    return [*said, (head, True), *_listed(tools), ("\n</tools>", True)]


def response_pieces(responses: Sequence[str]) -> list[Piece]:
    """Make the content of the user turn with tool responses, one block each."""
    pieces: list[Piece] = []
    for response in responses:
        start = "\n<tool_response>\n" if pieces else "<tool_response>\n"
        pieces += [(start, True), (response, False), ("\n</tool_response>", True)]
    return pieces


def joined(pieces: Sequence[Piece]) -> str:
    """Join pieces to one text."""
    return "".join(text for text, _ in pieces)


def _listed(tools: Sequence[ToolSchema]) -> list[Piece]:
    return [("\n" + json_text(tool), False) for tool in tools]


CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class CallBlock:
    """Place of a tool call in a text.

    Attributes:
        start: Place of the opening tag.
        stop: Place behind the closing tag, or the text's end without one.
        inner: Start and stop of what stands between the tags.
        closed: Whether there is a closing tag.
        whole: Whether JSON, and nothing else, stands between the tags.
    """

    start: int
    stop: int
    inner: tuple[int, int]
    closed: bool
    whole: bool


def block_at(text: str, start: int) -> CallBlock:
    """Find the end of a tool-call block; see :func:`closing_tag`.

    Args:
        text: The text.
        start: Place of the opening tag.
    """
    inner = start + len(CALL_OPEN)
    close, whole = closing_tag(text, inner, CALL_CLOSE)
    if close < 0:
        return CallBlock(start, len(text), (inner, len(text)), closed=False, whole=False)
    return CallBlock(start, close + len(CALL_CLOSE), (inner, close), closed=True, whole=whole)


def closing_tag(text: str, start: int, tag: str) -> tuple[int, bool]:
    """Find the first closing tag behind the JSON of a block, since a string in the JSON may hold the tag.

    Args:
        text: The text.
        start: Place behind the opening tag. Without JSON there, the first closing tag is the block's.
        tag: The closing tag.

    Returns:
        Its place, -1 without one; and whether JSON, and nothing else, stands before it.
    """
    close = text.find(tag, start)
    behind = start
    while close >= 0 and (end := json_end(text, behind)) is not None:
        behind = end
        close = text.find(tag, max(close, end))
    return close, behind > start and not text[behind:close].strip()


def call_text(call: ToolCall) -> str:
    """Write a call as the JSON that stands between the tags.

    Raises:
        ValueError: The call is no JSON in UTF-8, such as a number that is not finite or half of a character.
    """
    try:
        check_json(dict(call))
    except JsonTextError as error:
        raise ValueError(f"the call of the tool {call['name'][:60]!r} cannot be written: it {error}") from error
    return json_text(dict(call))


def parse_tool_calls(text: str) -> list[ParsedCall]:
    r"""Parse every ``<tool_call>`` block of a text without thinking, strictly; see :func:`parse_call`.

    Args:
        text: Text of the turn after the reasoning.

    Returns:
        One entry per block, in order; malformed blocks carry the reason.

    >>> parse_tool_calls('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')[0].call
    {'name': 'add', 'arguments': {'a': 1}}
    >>> parse_tool_calls("<tool_call>add(1)</tool_call>")[0].error
    'The tool call is not valid JSON: Expecting value at character 0.'
    """
    found = []
    at = text.find(CALL_OPEN)
    while at >= 0:
        block = block_at(text, at)
        found.append(parse_call(text[slice(*block.inner)], closed=block.closed))
        at = text.find(CALL_OPEN, block.stop)
    return found


def parse_call(text: str, *, closed: bool = True) -> ParsedCall:
    """Parse what stands between the tags of one call.

    It must be one JSON object with a string ``name`` and an object ``arguments``; nothing is repaired, since a repaired
    call would train the policy on tokens that did not do what they were rewarded for.

    Args:
        text: The text between the tags.
        closed: Whether there was a closing tag.
    """
    if not closed:
        return ParsedCall(None, "The tool call is not closed with </tool_call>.")
    try:
        value = parse_json(text)
    except JsonTextError as error:
        return ParsedCall(None, f"The tool call {error.brief}.")
    if not isinstance(value, dict):
        return ParsedCall(None, "The tool call is not a JSON object.")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return ParsedCall(None, 'The tool call has no "name" string.')
    if not isinstance(arguments, dict):
        return ParsedCall(None, 'The tool call has no "arguments" object.')
    return ParsedCall(ToolCall(name=name, arguments=arguments))

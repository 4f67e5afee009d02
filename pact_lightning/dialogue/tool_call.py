"""A tool call, and how one is read out of what a model wrote."""

import json
import re
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


_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def parse_tool_calls(text: str) -> list[ParsedCall]:
    r"""Reads every ``<tool_call>`` block of a turn, strictly.

    A block must hold one JSON object with a string ``name`` and an object ``arguments``; nothing is repaired, since a
    repaired call would train the policy on tokens that did not do what they were rewarded for.

    Args:
        text: The turn's text after the reasoning.

    Returns:
        One entry per block, in order; malformed blocks carry the reason.

    >>> parse_tool_calls('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')[0].call
    {'name': 'add', 'arguments': {'a': 1}}
    >>> parse_tool_calls("<tool_call>add(1)</tool_call>")[0].error
    'The tool call is not valid JSON: Expecting value at character 0.'
    """
    return [_parse_block(match) for match in _BLOCK.finditer(text)]


def _parse_block(match: re.Match[str]) -> ParsedCall:
    if not match.group(0).endswith("</tool_call>"):
        return ParsedCall(None, "The tool call is not closed with </tool_call>.")
    try:
        value = json.loads(match.group(1))
    except json.JSONDecodeError as error:
        return ParsedCall(None, f"The tool call is not valid JSON: {error.msg} at character {error.pos}.")
    except RecursionError:
        return ParsedCall(None, "The tool call is nested too deeply.")
    if not isinstance(value, dict):
        return ParsedCall(None, "The tool call is not a JSON object.")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return ParsedCall(None, 'The tool call has no "name" string.')
    if not isinstance(arguments, dict):
        return ParsedCall(None, 'The tool call has no "arguments" object.')
    return ParsedCall(ToolCall(name=name, arguments=arguments))

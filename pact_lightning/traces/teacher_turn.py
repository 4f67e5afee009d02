"""One turn of a teacher, read out of an endpoint's reply as strictly as a rollout's turn."""

import json
import re
from dataclasses import dataclass
from typing import Any

from pact_lightning.dialogue.tool_call import ParsedCall, ToolCall, parse_tool_calls
from pact_lightning.traces.reply import NativeCall, Reply
from pact_lightning.traces.teacher_prompt import CallFormat

_BLOCK = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)
_THINK = re.compile(r"</?think>")


@dataclass(frozen=True, slots=True)
class TeacherTurn:
    """What a reply says.

    Attributes:
        reasoning: The thinking and, in a turn that calls tools, the text before its first call [D]: models without
            thinking marks say there what they are about to do.
        answer: The text of a turn without calls.
        calls: The well-formed calls.
        call_ids: One id per call.
        message: The assistant message that goes back into the dialogue.
        problem: Why no expert could have written this turn; empty for a good one.
    """

    reasoning: str
    answer: str
    calls: tuple[ToolCall, ...]
    call_ids: tuple[str, ...]
    message: dict[str, Any]
    problem: str = ""


def read_teacher_turn(reply: Reply, index: int, call_format: CallFormat, *, send_reasoning: bool = True) -> TeacherTurn:
    """Reads a reply.

    Args:
        reply: What the endpoint answered.
        index: The turn's index; it makes ids for calls that came without.
        call_format: How the teacher was asked to call.
        send_reasoning: Whether the turn's message has the thinking that the server gave apart from the text.

    Returns:
        The turn. A malformed call, text behind the first call, thinking that does not end, a reply that was cut, and
        one without words or calls are problems: the paper drops malformed turns, and nothing is repaired.
    """
    thought, body, open_thinking = _split_thinking(reply.text)
    if call_format == "native":
        parsed = [parse_native_call(call) for call in reply.calls]
        before, behind = body, ""
    else:
        parsed = parse_tool_calls(body)
        before, block, rest = body.partition("<tool_call>")
        behind = _BLOCK.sub("", block + rest)
    thinking = [reply.reasoning.strip(), thought.strip(), before.strip() if parsed else ""]
    ids = tuple(call.id or f"call_{index}_{number}" for number, call in enumerate(reply.calls))
    turn = TeacherTurn(
        reasoning="\n\n".join(part for part in thinking if part),
        answer="" if parsed else body.strip(),
        calls=tuple(entry.call for entry in parsed if entry.call is not None),
        call_ids=ids,
        message=_message(reply, ids, send_reasoning),
    )
    problem = _problem(reply, turn, parsed, behind, open_thinking)
    return TeacherTurn(turn.reasoning, turn.answer, turn.calls, ids, turn.message, problem) if problem else turn


def parse_native_call(call: NativeCall) -> ParsedCall:
    r"""Reads a native call by the rules of :func:`~pact_lightning.dialogue.tool_call.parse_tool_calls`.

    Empty arguments are those of a call without any; many servers write it that way.

    >>> parse_native_call(NativeCall("1", "add", '{"a": 1}')).call
    {'name': 'add', 'arguments': {'a': 1}}
    >>> parse_native_call(NativeCall("1", "add", '{"a": 1')).error
    "The tool call's arguments are not valid JSON: Expecting ',' delimiter at character 7."
    """
    arguments = call.arguments.strip() or "{}"
    try:
        json.loads(arguments)
    except json.JSONDecodeError as error:
        where = f"{error.msg.removesuffix(' at')} at character {error.pos}"
        return ParsedCall(None, f"The tool call's arguments are not valid JSON: {where}.")
    except (ValueError, RecursionError) as error:
        return ParsedCall(None, f"The tool call's arguments cannot be read: {error}.")
    block = f'<tool_call>{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}</tool_call>'
    # Valid JSON has "<" in strings only, where an escaped slash is the same slash: the block closes where it ends.
    (parsed,) = parse_tool_calls(block.replace("</", "<\\/", block.count("</") - 1))
    return parsed


def _split_thinking(text: str) -> tuple[str, str, bool]:
    """Thinking, the rest, and whether the thinking does not end. Some templates open the thinking in the prompt."""
    stripped = text.lstrip()
    if stripped.startswith("<think>"):
        inside, closed, after = stripped.removeprefix("<think>").partition("</think>")
        return inside, after, not closed
    inside, closed, after = text.partition("</think>")
    return (inside, after, False) if closed else ("", text, False)


def _message(reply: Reply, ids: tuple[str, ...], send_reasoning: bool) -> dict[str, Any]:
    """The reply as it goes back."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning_field and send_reasoning:
        message[reply.reasoning_field] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call_id, call in zip(ids, reply.calls, strict=True)
        ]
    return message


def _problem(reply: Reply, turn: TeacherTurn, parsed: list[ParsedCall], behind: str, open_thinking: bool) -> str:
    if reply.cut:
        return "The reply reached the token limit."
    if open_thinking:
        return "The thinking does not end."
    error = next((entry.error for entry in parsed if entry.call is None), "")
    if error:
        return error
    if behind.strip():
        return f"There is text behind the first call: {behind.strip()[:80]!r}."
    if _THINK.search(turn.reasoning) or _THINK.search(turn.answer):
        return "The turn holds a thinking mark inside its reasoning or answer."
    if not parsed and not turn.answer:
        return "The turn has neither words nor calls."
    return ""

"""Turn of a teacher: its prompt, and the reading of its reply (METHOD section 6).

The prompt is the task's own messages with the paper's request around the question. A reply is read as strictly as a
rollout's turn.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pact_lightning.dialogue.tool_text import joined, parse_call, response_pieces, system_pieces, user_pieces
from pact_lightning.dialogue.turn_text import joined_parts, joined_spans, read_layout
from pact_lightning.teacher.endpoint import NativeCall, Reply
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ParsedCall, ToolCall

CallFormat = Literal["native", "text"]
"""``native``: the protocol's own ``tools`` and ``tool_calls``. ``text``: Qwen's ``<tools>`` in the system turn and
``<tool_call>`` in the text, for models or servers without native calling."""

PROMPT_VERSION = 1
"""Version of the wording; part of a log's settings."""

_REQUEST = (
    "Work this out with the tools: whatever you need to know, get it through tool calls and not from memory. Before "
    "each call, think about what is still missing. If a call fails, read the error, correct the call and carry on."
)
_ANSWER = (
    "Once you have all you need, reply without a tool call, and put the final answer, and nothing else, between "
    "<answer> and </answer>."
)
_NO_ANSWER = "Once you have all you need, reply without a tool call."
_THINK = re.compile(r"</?think>")


def teacher_messages(task: Task, call_format: CallFormat) -> list[dict[str, Any]]:
    """Return the dialogue up to the teacher's first turn.

    The request stands before the question, which is the last user message; system messages stay as they are. It asks
    for an answer tag only if the task has a reference answer to compare with [D].

    Args:
        task: The task; nothing of its reference or of an older trace gets into the messages.
        call_format: Format of the tool calls.
    """
    messages = [dict(message) for message in task.prompt.messages]
    ending = _ANSWER if task.reference.answer is not None else _NO_ANSWER
    messages[-1]["content"] = f"{_REQUEST} {ending}\n\nQuestion: {messages[-1]['content']}"
    if call_format == "text" and task.prompt.tools:
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        messages.insert(0, {"role": "system", "content": joined(system_pieces(system, task.prompt.tools))})
    return messages


def follow_up_message(turn: UserTurn, call_format: CallFormat) -> dict[str, Any]:
    """Return the user's next message; in text format it lists the tools that come with it."""
    content = turn.content if call_format == "native" else joined(user_pieces(turn.content, turn.tools))
    return {"role": "user", "content": content}


def response_messages(
    call_ids: Sequence[str], responses: Sequence[str], call_format: CallFormat
) -> list[dict[str, Any]]:
    """Return the responses to a turn's calls: one tool message each, or one user message in Qwen's format."""
    if call_format == "native":
        return [
            {"role": "tool", "tool_call_id": call_id, "content": response}
            for call_id, response in zip(call_ids, responses, strict=True)
        ]
    return [{"role": "user", "content": joined(response_pieces(responses))}]


@dataclass(frozen=True, slots=True)
class TeacherTurn:
    """Parsed reply of a teacher.

    Attributes:
        reasoning: The thinking and, in a turn that calls tools, the text before its first call [D]: models without
            thinking marks explain there what they are about to do.
        answer: The text of a turn without calls.
        calls: The well-formed calls.
        call_ids: One id per call.
        message: The assistant message for the dialogue.
        problem: The mistake that spoils this turn; empty for a good one.
    """

    reasoning: str
    answer: str
    calls: tuple[ToolCall, ...]
    call_ids: tuple[str, ...]
    message: dict[str, Any]
    problem: str = ""


def read_teacher_turn(reply: Reply, index: int, call_format: CallFormat, *, send_reasoning: bool = True) -> TeacherTurn:
    """Parse a reply; the paper drops malformed turns, so nothing is repaired.

    Problems are a malformed call, text behind the first call, thinking that does not end, a reply that was cut, and
    one without words or calls.

    Args:
        reply: The endpoint's reply.
        index: The turn's index, for the ids of calls that came without one.
        call_format: Format of the tool calls.
        send_reasoning: Put thinking that came apart from the text into the turn's message.
    """
    text = reply.text
    layout = read_layout(text)
    thought, behind = joined_spans(text, layout.thinking), ""
    if call_format == "native":
        parsed = [parse_native_call(call) for call in reply.calls]
        said = joined_spans(text, layout.outside)
    else:
        parsed = [parse_call(text[slice(*block.inner)], closed=block.closed) for block in layout.blocks]
        said = joined_spans(text, layout.before_calls)
        behind = joined_spans(text, layout.behind_calls)
    ids = tuple(call.id or f"call_{index}_{number}" for number, call in enumerate(reply.calls))
    turn = TeacherTurn(
        reasoning=joined_parts([reply.reasoning, thought, said if parsed else ""]),
        answer="" if parsed else said,
        calls=tuple(entry.call for entry in parsed if entry.call is not None),
        call_ids=ids,
        message=_message(reply, ids, send_reasoning),
    )
    return replace(turn, problem=_problem(reply, turn, parsed, behind, layout.open_thinking))


def parse_native_call(call: NativeCall) -> ParsedCall:
    r"""Parse a native call by the rules of :func:`~pact_lightning.dialogue.tool_text.parse_call`.

    Empty text means no arguments, as many servers write it.

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
    return parse_call(f'{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}')


def _message(reply: Reply, ids: tuple[str, ...], send_reasoning: bool) -> dict[str, Any]:
    """Return the reply as the dialogue's next message."""
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
    if behind:
        return f"There is text behind the first call: {behind[:80]!r}."
    if _THINK.search(turn.reasoning) or _THINK.search(turn.answer):
        return "The turn holds a thinking mark inside its reasoning or answer."
    if not parsed and not turn.answer:
        return "The turn has neither words nor calls."
    return ""

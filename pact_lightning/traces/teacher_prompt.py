"""How a teacher is asked: the task's own messages with the paper's request around the question (METHOD section 6)."""

from collections.abc import Sequence
from typing import Any, Literal

from pact_lightning.dialogue.tool_text import joined, response_pieces, system_pieces, user_pieces
from pact_lightning.tasks.prompt import UserTurn
from pact_lightning.tasks.schema import Task

CallFormat = Literal["native", "text"]
"""``native``: the protocol's own ``tools`` and ``tool_calls``. ``text``: Qwen's ``<tools>`` in the system turn and
``<tool_call>`` in the text, for models or servers without native calling."""

PROMPT_VERSION = 1
"""Counts up with every change of wording, so that runs before and after are told apart."""

_REQUEST = (
    "Work this out with the tools: whatever you need to know, get it through tool calls and not from memory. Before "
    "each call, think about what is still missing. If a call fails, read the error, correct the call and carry on."
)
_ANSWER = (
    "Once you have all you need, reply without a tool call, and put the final answer, and nothing else, between "
    "<answer> and </answer>."
)
_NO_ANSWER = "Once you have all you need, reply without a tool call."


def teacher_messages(task: Task, call_format: CallFormat) -> list[dict[str, Any]]:
    """The dialogue up to the teacher's first turn.

    The request stands before the question, which is the last user message; system messages stay as they are. The tag
    for the answer is asked for where the task has a reference answer to compare it with [D].

    Args:
        task: The task; nothing of its reference or of an older trace gets into the messages.
        call_format: How the teacher calls tools.
    """
    messages = [dict(message) for message in task.prompt.messages]
    ending = _ANSWER if task.reference.answer is not None else _NO_ANSWER
    messages[-1]["content"] = f"{_REQUEST} {ending}\n\nQuestion: {messages[-1]['content']}"
    if call_format == "text" and task.prompt.tools:
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        messages.insert(0, {"role": "system", "content": joined(system_pieces(system, task.prompt.tools))})
    return messages


def follow_up_message(turn: UserTurn, call_format: CallFormat) -> dict[str, Any]:
    """The user's next message; in text format the tools that come with it are listed in it."""
    content = turn.content if call_format == "native" else joined(user_pieces(turn.content, turn.tools))
    return {"role": "user", "content": content}


def response_messages(
    call_ids: Sequence[str], responses: Sequence[str], call_format: CallFormat
) -> list[dict[str, Any]]:
    """What comes back to a turn's calls: one tool message each, or one user message in Qwen's format."""
    if call_format == "native":
        return [
            {"role": "tool", "tool_call_id": call_id, "content": response}
            for call_id, response in zip(call_ids, responses, strict=True)
        ]
    return [{"role": "user", "content": joined(response_pieces(responses))}]

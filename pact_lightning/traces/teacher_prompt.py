"""How a teacher is asked: the task's own messages with the paper's request around the question (METHOD section 6)."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pact_lightning.tasks.prompt import ToolSchema, UserTurn
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
# Qwen's format, as the policy's own prompt has it; a test holds the two together.
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
        messages.insert(0, {"role": "system", "content": tools_text(task.prompt.tools, system)})
    return messages


def tools_text(tools: Sequence[ToolSchema], system: str | None) -> str:
    """Qwen's system turn: the task's own system message, then the tools and how they are called."""
    before = f"{system}\n\n" if system is not None else ""
    return f"{before}{_TOOLS_HEAD}{_listed(tools)}{_TOOLS_TAIL}"


def follow_up_message(turn: UserTurn, call_format: CallFormat) -> dict[str, Any]:
    """The user's next message; in text format the tools that come with it are listed in it."""
    content = turn.content
    if turn.tools and call_format == "text":
        content += ("\n\n" if content else "") + f"{_MORE_TOOLS_HEAD}{_listed(turn.tools)}\n</tools>"
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
    blocks = "\n".join(f"<tool_response>\n{response}\n</tool_response>" for response in responses)
    return [{"role": "user", "content": blocks}]


def _listed(tools: Sequence[ToolSchema]) -> str:
    return "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)

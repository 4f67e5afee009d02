"""What every task must satisfy, wherever it comes from, and the errors that say what does not."""

from collections.abc import Iterable, Mapping

from pact_lightning.types.prompt import PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import flatten_calls
from pact_lightning.utils.errors import TaskFieldError

ROLES = ("system", "user")
"""Roles that a prompt may hold."""


def check_task(task: Task) -> None:
    """Checks one task.

    Args:
        task: The task.

    Raises:
        TaskFieldError: No id, no user message, an unknown role, a tool without a name or a parameters object, two tools
            of one name, no environment class, a follow-up that brings neither words nor tools, or a reference or trace
            that names a tool the task does not have, or replies to more user turns than the task has.
    """
    if not task.id:
        raise TaskFieldError("id", "must not be empty")
    _check_messages(task.prompt)
    _check_tools(task.prompt)
    if "." not in task.prompt.environment.class_path:
        raise TaskFieldError("environment.class_path", "must be an import path such as `package.module.Class`")
    known = frozenset(task.prompt.tool_names)
    _check_calls("reference.calls", task.reference.calls, known)
    for index, sub_answer in enumerate(task.reference.sub_answers):
        _check_known(f"reference.sub_answers[{index}].tool", sub_answer.tool, known)
    if task.trace is not None:
        _check_calls("trace.turns", flatten_calls(task.trace.turns), known)
        if task.trace.replies > len(task.prompt.follow_ups):
            problem = f"reply {task.trace.replies} times, but the task has {len(task.prompt.follow_ups)} follow_ups"
            raise TaskFieldError("trace.turns", f"{problem}; the reply to the last user turn belongs in `trace.final`")


def _check_messages(prompt: PromptView) -> None:
    for index, message in enumerate(prompt.messages):
        if message.get("role") not in ROLES:
            raise TaskFieldError(f"messages[{index}].role", f"must be system or user, got {message.get('role')!r}")
        if not isinstance(message.get("content"), str):
            raise TaskFieldError(f"messages[{index}].content", "must be a string")
    if not prompt.messages or prompt.messages[-1]["role"] != "user":
        raise TaskFieldError("messages", "must end with a user message")


def _check_tools(prompt: PromptView) -> None:
    seen: set[str] = set()
    tools = [(f"tools[{index}]", tool) for index, tool in enumerate(prompt.tools)]
    for number, turn in enumerate(prompt.follow_ups):
        if not turn.content and not turn.tools:
            raise TaskFieldError(f"follow_ups[{number}]", "must bring a content or tools")
        tools += [(f"follow_ups[{number}].tools[{index}]", tool) for index, tool in enumerate(turn.tools)]
    for where, tool in tools:
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise TaskFieldError(f"{where}.function", "must be an object with a name and a parameters object")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise TaskFieldError(f"{where}.function.name", "must be a string that is not empty")
        if not isinstance(function.get("parameters"), Mapping):
            raise TaskFieldError(f"{where}.function.parameters", f"tool {name!r} needs a JSON schema object")
        if name in seen:
            raise TaskFieldError(f"{where}.function.name", f"tool {name!r} is listed twice")
        seen.add(name)


def _check_calls(field: str, calls: Iterable[ToolCall], known: frozenset[str]) -> None:
    for call in calls:
        _check_known(field, call["name"], known)


def _check_known(field: str, name: str, known: frozenset[str]) -> None:
    if name not in known:
        raise TaskFieldError(field, f"names the tool {name!r}, which is not in `tools`")

"""Prompts: the part of a task that the rollout side may know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pact_lightning.utils.imports import import_path

Message = Mapping[str, Any]
"""A message in OpenAI format: ``role`` and ``content``."""
ToolSchema = Mapping[str, Any]
"""A tool in OpenAI format: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """Environment of a task, as a class path and its arguments.

    Attributes:
        class_path: Import path of a class that follows :class:`pact_lightning.Environment`.
        init_args: Its constructor arguments.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """Import the class and make the environment; any other object is never called.

        Raises:
            ImportError: The class cannot be found, or lacks the methods; the message names ``class_path``.
        """
        found = import_path(self.class_path, "environment class")
        lacks = [verb for verb in ("reset", "call") if not callable(getattr(found, verb, None))]
        if not isinstance(found, type):
            raise ImportError(
                f"{self.class_path!r} is not a class; environment.class_path names a class with the methods reset and "
                "call"
            )
        if lacks:
            raise ImportError(
                f"the environment class {self.class_path!r} has no method {' and no method '.join(lacks)}; a class in "
                "TRL's style runs in pact_lightning.TRLEnvironment"
            )
        return found(**self.init_args)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """Further user turn, released by the policy's answer to the one before.

    Attributes:
        content: The user's words.
        tools: Tools that become available with this turn.
    """

    content: str
    tools: tuple[ToolSchema, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptView:
    """Task as the rollout engine sees it: without reference and trace, so neither can reach a sampler.

    Attributes:
        id: The task's id.
        messages: System and user messages before the first assistant turn, in order.
        tools: The tools' schemas, in the order of the prompt.
        environment: The environment that runs the tools.
        follow_ups: Further user turns, in order. A turn of the policy without a tool call answers the user and
            releases the next one; a rollout has answered once none is left.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    environment: EnvironmentSpec
    follow_ups: tuple[UserTurn, ...] = ()

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of all tools, in order, those of later user turns last."""
        return self.tool_names_after(len(self.follow_ups))

    def tool_names_after(self, released: int) -> tuple[str, ...]:
        """Return the names of the tools that are available once so many follow-ups are released."""
        return tuple(str(tool["function"]["name"]) for tool in self.tools_after(released))

    def tools_after(self, released: int) -> tuple[ToolSchema, ...]:
        """Return the schemas of the tools that are available once so many follow-ups are released."""
        return (*self.tools, *(tool for turn in self.follow_ups[:released] for tool in turn.tools))


def as_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Copy messages into a tuple of plain dictionaries."""
    return tuple(dict(message) for message in messages)

"""Protocol of environments: the three verbs that the rollout engine uses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pact_lightning.types.prompt import PromptView, ToolSchema
from pact_lightning.utils.errors import RunStoppedError


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Answer of a tool.

    Attributes:
        text: The observation, exactly as the policy will read it.
        error: ``True`` if the call failed; the text says how. A failed call is an observation, never an exception.
        solved: ``True`` if this call solved an open part of the task; ``None`` if the environment does not know.
        unanswered: ``True`` if nobody answered: the server behind the tool has ended, cannot be reached, is silent, or
            breaks its protocol. Such a call says nothing about the policy; if all calls are like this, the run stops.
    """

    text: str
    error: bool = False
    solved: bool | None = None
    unanswered: bool = False


def unknown_tool(name: str, offered: Iterable[str]) -> ToolResult:
    """Return the answer to a call of a tool that is not offered."""
    return ToolResult(f"There is no tool named {name!r}. The tools are: {', '.join(offered)}.", error=True)


class EnvironmentUnavailableError(RunStoppedError, RuntimeError):
    """Error of an environment that no rollout can do without, such as a server that stays away.

    It stops the run, with everything saved. ``reset``, ``call`` and functions that are tools may raise it. Any other
    exception costs one rollout or one call, and the run goes on.
    """


@runtime_checkable
class Environment(Protocol):
    """Object whose tools a rollout calls. One instance serves one rollout at a time; ``call`` may run on any thread.

    Two more verbs are optional. They run after the rollout, under the time limit of a call: ``reward() -> float``, the
    rollout's reward (``data.credit.reward: environment``), and ``close() -> None``.
    """

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of the tools in OpenAI format; they may change after a call."""
        ...

    def reset(self, task: PromptView, seed: int) -> None:
        """Start a rollout; the same task and seed must lead to the same responses."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool; an unknown name or bad arguments give a result with ``error`` set."""
        ...


def close_environment(environment: object) -> None:
    """Call an environment's ``close``, if it has one."""
    close = getattr(environment, "close", None)
    if callable(close):
        close()

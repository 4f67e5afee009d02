"""What an environment is: the three verbs that the rollout engine uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pact_lightning.types.prompt import PromptView, ToolSchema
from pact_lightning.utils.errors import RunStoppedError


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answers.

    Attributes:
        text: The observation, exactly as the policy will read it.
        error: The call failed (the text says how); a failed call is an observation, never an exception.
        solved: Whether this call solved an open part of the task, where the environment knows.
        unanswered: Nobody answered: the server behind the tool has ended, cannot be reached, keeps silent, or answers
            against its protocol. Such a call says nothing of the policy; where all calls are so, the run stops.
    """

    text: str
    error: bool = False
    solved: bool | None = None
    unanswered: bool = False


class EnvironmentUnavailableError(RunStoppedError, RuntimeError):
    """What every rollout needs is gone, a server that does not come back: the run stops, with everything saved.

    Raised by ``reset`` or ``call``, in a function or a method that is a tool as well. Every other exception costs one
    rollout or one call, and the run goes on.
    """


@runtime_checkable
class Environment(Protocol):
    """A place where tools run. One instance serves one rollout at a time; ``call`` may run on any thread.

    Two more verbs are used where an environment has them, after its rollout and under the time limit of a call:
    ``reward() -> float``, what the rollout is worth (``data.credit.reward: environment``), and ``close() -> None``.
    """

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """The tools' schemas in OpenAI format; may change after a call."""
        ...

    def reset(self, task: PromptView, seed: int) -> None:
        """Starts afresh; the same task and seed must lead to the same responses."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one tool; unknown names and bad arguments come back as a result with ``error`` set."""
        ...


def close_environment(environment: object) -> None:
    """Lets an environment clean up after itself, where it has the verb ``close``."""
    close = getattr(environment, "close", None)
    if callable(close):
        close()

"""A task: a prompt, what solves it, and perhaps an expert trace.

Where tasks come from: one method that loads them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace


@dataclass(frozen=True, slots=True)
class SubAnswer:
    """One sub-question's answer, to be found in a response of one tool (FTRL's ``unsolved_set``)."""

    tool: str
    answer: str


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known to solve a task; used by credit and metrics, never shown to the policy.

    Attributes:
        answer: The final answer, or ``None`` where it is not known.
        calls: Tool calls that solve the task, in order; empty where they are not known.
        sub_answers: Expected answers per tool; empty where they are not known.
    """

    answer: str | None = None
    calls: tuple[ToolCall, ...] = ()
    sub_answers: tuple[SubAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt with its reference and, where there is one, its expert trace.

    Attributes:
        prompt: All that a rollout may see.
        reference: What credit and metrics compare with.
        trace: Privileged; joins only after the rollouts exist.
        kind: A free label by which results are grouped (FTRL's ``data_source``).
        metadata: JSON-able facts that nothing in the package depends on.
    """

    prompt: PromptView
    reference: Reference = field(default_factory=Reference)
    trace: ExpertTrace | None = None
    kind: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.prompt.id


@runtime_checkable
class TaskSource(Protocol):
    """Anything that loads tasks; recipes name one by ``class_path`` and ``init_args``."""

    def load(self) -> Sequence[Task]:
        """Reads and checks every task.

        Raises:
            TaskFileError: A file holds a task that is not well formed.
        """
        ...

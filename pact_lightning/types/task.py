"""Task: a prompt, its reference solution, and perhaps an expert trace; and the protocol of task sources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace


class TaskPlace(NamedTuple):
    """Place of a task.

    Attributes:
        path: The file or data set, or the class of the source.
        line: The line, row or item.
        unit: Which of these it is.
    """

    path: str
    line: int
    unit: str = "line"


class SubAnswer(NamedTuple):
    """Answer to one sub-question, expected in a response of one tool (FTRL's ``unsolved_set``)."""

    tool: str
    answer: str


@dataclass(frozen=True, slots=True)
class Reference:
    """Known solution of a task, for credit and metrics; the policy never sees it.

    Attributes:
        answer: The final answer; ``None`` if unknown.
        calls: Tool calls that solve the task, in order; empty if unknown.
        sub_answers: Expected answers per tool; empty if unknown.
    """

    answer: str | None = None
    calls: tuple[ToolCall, ...] = ()
    sub_answers: tuple[SubAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Prompt with its reference and, if there is one, its expert trace.

    Attributes:
        prompt: All that a rollout may see.
        reference: The known solution, for credit and metrics.
        trace: The expert trace, which joins only after the rollouts exist.
        kind: A free label by which results are grouped (FTRL's ``data_source``).
        metadata: JSON-able facts that nothing in the package depends on.
        place: Where it stands, for errors; ``None`` for a task that was not read from anywhere.
    """

    prompt: PromptView
    reference: Reference = field(default_factory=Reference)
    trace: ExpertTrace | None = None
    kind: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: TaskPlace | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.prompt.id


@runtime_checkable
class TaskSource(Protocol):
    """Source of tasks; recipes name one by ``class_path`` and ``init_args``."""

    def load(self) -> Any:
        """Load all tasks: an iterable of :class:`Task`.

        The hint is wide, since jsonargparse takes only classes whose own hint is the very same.

        Raises:
            TaskFileError: A file holds a task that is not well formed.
        """
        ...

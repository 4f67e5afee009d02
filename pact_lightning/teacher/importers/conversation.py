"""Conversation of a teacher: the common form of all formats."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pact_lightning.types.prompt import EnvironmentSpec, Message, ToolSchema, UserTurn
from pact_lightning.types.task import Reference
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTurn
from pact_lightning.utils.errors import TaskFieldError

Role = Literal["system", "user", "assistant", "tool"]


class RecordError(TaskFieldError):
    """Mistake in a record that keeps it from becoming a conversation.

    Attributes:
        reason: A short name by which such records are counted.
    """

    def __init__(self, reason: str, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.reason = reason


@dataclass
class Reading:
    """Knowledge of a record, and notes on it, while it is read.

    Attributes:
        notes: Number of changes that make the record fit, by name.
        forms: Names of the forms, beside the format's usual one, in which the record gives its parts.
        parameters: JSON schema of each tool's arguments, by the tool's name.
    """

    notes: Counter[str] = field(default_factory=Counter)
    forms: set[str] = field(default_factory=set)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """Call in a teacher's message.

    Attributes:
        call: The call.
        id: Its id; empty if the format has none.
        where: Its place in the record; empty if only its message's place is known.
    """

    call: ToolCall
    id: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """One message of any format.

    Attributes:
        role: The speaker's role.
        where: Its place in the record, such as ``messages[3]``.
        text: Its text, without reasoning and calls; the response of a tool.
        reasoning: A teacher's reasoning.
        calls: A teacher's calls, in order.
        call_id: Of a tool: the id of the call that it answers; empty if the format has none.
        tool: Of a tool: its name in the response, if given.
        failed: Of a tool: true if the record marks the call as failed.
        tools: Of a user: tools that come with the message.
        unread: Of a teacher: why a text that looks like a call is not read as one; else empty.
    """

    role: Role
    where: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[RequestedCall, ...] = ()
    call_id: str = ""
    tool: str = ""
    failed: bool = False
    tools: tuple[ToolSchema, ...] = ()
    unread: str = ""


class Source(NamedTuple):
    """Messages of a record, and its tools."""

    said: list[Said]
    tools: tuple[ToolSchema, ...]


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Places of one of the teacher's turns, and of each of its calls, in the record."""

    turn: str
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Assembled messages: a prompt, and the teacher's turns.

    Attributes:
        messages: The messages before the teacher's first turn.
        follow_ups: Further user turns.
        turns: The teacher's turns, each with its responses.
        final: The reply to the last user turn, if the dialogue gets that far.
        open_turn: A last turn whose calls have no response; only an environment can give them.
        tools: Tools that came with user messages of the prompt.
        notes: Number of changes that made the record fit, by name.
        places: Places of ``turns``, then of ``open_turn``, in the record.
    """

    messages: tuple[Message, ...]
    follow_ups: tuple[UserTurn, ...]
    turns: tuple[ExpertTurn, ...]
    final: ExpertTurn | None = None
    open_turn: ExpertTurn | None = None
    tools: tuple[ToolSchema, ...] = ()
    notes: Counter[str] = field(default_factory=Counter)
    places: tuple[SourcePlace, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Record of a teacher, parsed and checked.

    Attributes:
        id: The record's id, or empty.
        dialogue: Its messages.
        tools: The tools' schemas; empty if the record has none.
        environment: The environment of its tools, if the record names one.
        reference: The known solution, as far as the record gives it.
        kind: The record's label.
        metadata: The record's metadata.
        form: Name of the format, with the forms in which the record departs from its usual one.
    """

    id: str
    dialogue: Dialogue
    tools: tuple[ToolSchema, ...] = ()
    environment: EnvironmentSpec | None = None
    reference: Reference = field(default_factory=Reference)
    kind: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    form: str = ""

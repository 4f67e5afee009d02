"""Conversation of a teacher: the common form of all formats, and its assembly from messages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.types.prompt import EnvironmentSpec, Message, ToolSchema, UserTurn
from pact_lightning.types.task import Reference
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTurn, TurnPattern
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
    """

    id: str
    dialogue: Dialogue
    tools: tuple[ToolSchema, ...] = ()
    environment: EnvironmentSpec | None = None
    reference: Reference = field(default_factory=Reference)
    kind: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def assemble(said: Sequence[Said], notes: Counter[str] | None = None) -> Dialogue:
    """Assemble messages to a dialogue, and match calls with responses.

    Responses are matched by the calls' ids if they have some, else by order. Text beside calls is appended to the
    turn's reasoning, since it explains the calls [D]. Adjacent user messages after the teacher's first turn become one
    user turn. Both changes are counted in ``notes``.

    Args:
        said: The messages, in order.
        notes: Changes made so far.

    Returns:
        The dialogue; reasoning is segmented by rule.

    Raises:
        RecordError: The messages make no dialogue; the error names the message and the reason.
    """
    return _Assembly(said, Counter() if notes is None else notes).run()


class _Assembly:
    def __init__(self, said: Sequence[Said], notes: Counter[str]) -> None:
        self.said = said
        self.notes = notes
        self.messages: list[Message] = []
        self.tools: list[ToolSchema] = []
        self.follow_ups: list[UserTurn] = []
        self.turns: list[ExpertTurn] = []
        self.places: list[SourcePlace] = []
        self.failed = False  # a call of the turn before failed
        self.final: ExpertTurn | None = None
        self.open_turn: ExpertTurn | None = None

    def run(self) -> Dialogue:
        at = self._prompt()
        while at < len(self.said):
            message = self.said[at]
            if message.role == "assistant":
                at = self._teacher(at)
            elif message.role == "user":
                at = self._user(at)
            elif message.role == "tool":
                raise RecordError("response without call", message.where, "is a tool response that no call asked for")
            else:
                problem = "is a system message after the first assistant turn; there is no place for it in a task"
                raise RecordError("late system message", message.where, problem)
        return Dialogue(
            tuple(self.messages),
            tuple(self.follow_ups),
            tuple(self.turns),
            self.final,
            self.open_turn,
            tuple(self.tools),
            self.notes,
            tuple(self.places),
        )

    def _prompt(self) -> int:
        """Take in the messages before the teacher's first turn; return the index of that turn."""
        start = next((i for i, message in enumerate(self.said) if message.role not in ("system", "user")), None)
        if start is None:
            where = self.said[-1].where if self.said else "messages"
            raise RecordError("no assistant turn", where, "is followed by no assistant turn; there is no trace in it")
        for message in self.said[:start]:
            self.messages.append({"role": message.role, "content": message.text})
            self.tools += message.tools
        if not self.messages or self.messages[-1]["role"] != "user":
            problem = f"is said by the {self.said[start].role} before any user has asked"
            raise RecordError("no user message", self.said[start].where, problem)
        return start

    def _user(self, at: int) -> int:
        first, before = self.said[at], self.said[at - 1]
        if before.role != "assistant" or before.calls:
            problem = "comes before the assistant has answered the user message before it"
            raise RecordError("unanswered user message", first.where, problem)
        end = at + 1
        while end < len(self.said) and self.said[end].role == "user":
            end += 1
        together = self.said[at:end]
        if end == len(self.said):
            raise RecordError("unanswered user message", first.where, "has no reply after it")
        if len(together) > 1:
            self.notes["user messages joined"] += 1
        tools = tuple(tool for message in together for tool in message.tools)
        self.follow_ups.append(UserTurn("\n\n".join(message.text for message in together), tools))
        return end

    def _teacher(self, at: int) -> int:
        message = self.said[at]
        if message.calls:
            return self._calls(at)
        if not message.text.strip():
            raise RecordError("empty turn", message.where, "neither calls a tool nor says anything")
        following = self.said[at + 1] if at + 1 < len(self.said) else None
        chunks = segment_reasoning(message.reasoning, [])
        if following is None:
            self.final = ExpertTurn(chunks, pattern=TurnPattern.FINAL_ANSWER_TURN, answer=message.text)
        elif following.role == "user":
            self.turns.append(ExpertTurn(chunks, reply=message.text))
            self.places.append(SourcePlace(message.where))
            self.failed = False
        elif following.role == "assistant":
            problem = "is a second assistant message in a row; a turn must end in calls or be followed by the user"
            raise RecordError("two assistant messages", following.where, problem)
        return at + 1

    def _calls(self, at: int) -> int:
        message = self.said[at]
        end = at + 1
        while end < len(self.said) and self.said[end].role == "tool":
            end += 1
        responses = self.said[at + 1 : end]
        reasoning = message.reasoning
        if message.text.strip():
            self.notes["text beside calls put behind the reasoning"] += 1
            reasoning = f"{reasoning}\n\n{message.text}" if reasoning.strip() else message.text
        calls = tuple(request.call for request in message.calls)
        chunks = segment_reasoning(reasoning, calls)
        pattern = turn_pattern(len(self.turns), self.failed, chunks, is_final=False)
        turn = ExpertTurn(chunks, calls, (), pattern)
        self.places.append(SourcePlace(message.where, tuple(call.where or message.where for call in message.calls)))
        if not responses and end == len(self.said):
            self.open_turn = turn
            return end
        matched = match_responses(message.calls, responses, message.where)
        self.failed = any(response.failed for response in matched)
        self.turns.append(ExpertTurn(chunks, calls, tuple(response.text for response in matched), pattern))
        return end


def match_responses(calls: Sequence[RequestedCall], responses: Sequence[Said], where: str) -> list[Said]:
    """Find the response of every call of one turn.

    Args:
        calls: The turn's calls.
        responses: The tool messages that follow it.
        where: The turn's place.

    Returns:
        One response per call, in the calls' order.

    Raises:
        RecordError: A call has no response, a response has no call, two calls of the turn share an id, only some of
            them have one, or a response names another tool.
    """
    with_ids = [response for response in responses if response.call_id]
    if with_ids and len(with_ids) < len(responses):
        bare = next(response for response in responses if not response.call_id)
        raise RecordError("ids do not match", bare.where, "has no call id, while other responses of this turn have one")
    matched = _by_id(calls, responses, where) if with_ids else list(responses)
    if len(matched) < len(calls):
        name = calls[len(matched)].call["name"]
        problem = f"calls {len(calls)} tools but has {len(matched)} responses; {name!r} has none"
        raise RecordError("call without response", where, problem)
    if len(matched) > len(calls):
        problem = f"is response {len(calls) + 1} to a turn of {len(calls)} calls"
        raise RecordError("response without call", matched[len(calls)].where, problem)
    for request, response in zip(calls, matched, strict=True):
        if response.tool and response.tool != request.call["name"]:
            problem = f"is a response of {response.tool!r}, but the call is of {request.call['name']!r}"
            raise RecordError("response of another tool", response.where, problem)
    return matched


def _by_id(calls: Sequence[RequestedCall], responses: Sequence[Said], where: str) -> list[Said]:
    ids = [request.id for request in calls]
    twice = next((id_ for id_ in ids if ids.count(id_) > 1), None)
    if twice is not None:
        raise RecordError("duplicate call id", where, f"has two calls with the id {twice!r}")
    found: dict[str, Said] = {}
    for response in responses:
        if response.call_id not in ids:
            problem = f"answers the call {response.call_id!r}, which this turn does not make"
            raise RecordError("ids do not match", response.where, problem)
        if response.call_id in found:
            raise RecordError("duplicate call id", response.where, f"answers the call {response.call_id!r} again")
        found[response.call_id] = response
    for request in calls:
        if request.id not in found:
            problem = f"the call {request.id!r} of {request.call['name']!r} has no response"
            raise RecordError("call without response", where, problem)
    return [found[id_] for id_ in ids]

"""Assembly of a teacher's messages to a dialogue: turns, each call with its response, and further user turns."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pact_lightning.teacher.importers.conversation import Dialogue, RecordError, RequestedCall, Said, SourcePlace
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.types.prompt import Message, ToolSchema, UserTurn
from pact_lightning.types.trace import ExpertTurn, TurnPattern
from pact_lightning.utils.errors import shortened


def assemble(said: Sequence[Said], notes: Counter[str] | None = None) -> Dialogue:
    """Assemble messages to a dialogue, and match calls with responses.

    What is changed to make a dialogue of them is counted in ``notes`` [D]. Text beside calls is appended to the turn's
    reasoning, since it explains the calls. Messages of the teacher in a row that lead to a call become one turn;
    leading system messages become one, and so do adjacent user messages after the teacher's first turn. A closing user
    message, which nobody answers, is left out.

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
        self.notes = notes
        self.said = _without_closing(list(_joined(said, notes)), notes)
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
                raise _late(message)
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
            if message.role == "system" and self.messages:
                raise _late(message)
            self.messages.append({"role": message.role, "content": message.text})
            self.tools += message.tools
        if not self.messages or self.messages[-1]["role"] != "user":
            problem = f"comes from the {self.said[start].role} before any user has asked"
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
        elif following.role == "tool":
            why = message.unread or f"its text is {shortened(message.text)}"
            problem = f"holds no call in a form that is known, yet {following.where} is a tool's response; {why}"
            raise RecordError("response without call", message.where, problem)
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
        matched = match_responses(message.calls, responses, message.where, self.notes)
        self.failed = any(response.failed for response in matched)
        self.turns.append(ExpertTurn(chunks, calls, tuple(response.text for response in matched), pattern))
        return end


def _late(message: Said) -> RecordError:
    problem = "is a system message behind other messages; there is no place for it in a task"
    return RecordError("late system message", message.where, problem)


def _joined(said: Sequence[Said], notes: Counter[str]) -> Iterator[Said]:
    """Join messages that stand in a row and are one: leading system messages, and those of a turn that calls tools."""
    held: Said | None = None
    leading = True
    for message in said:
        both_system = leading and held is not None and message.role == held.role == "system"
        if held is not None and (both_system or _one_turn(held, message)):
            notes["system messages joined" if both_system else "assistant messages joined"] += 1
            held = replace(
                held,
                text=_together(held.text, message.text),
                reasoning=_together(held.reasoning, message.reasoning),
                calls=(*held.calls, *message.calls),
                unread=message.unread,
            )
            continue
        if held is not None:
            leading = leading and held.role == "system"
            yield held
        held = message
    if held is not None:
        yield held


def _one_turn(first: Said, second: Said) -> bool:
    """Tell whether two messages in a row are one turn: the second calls tools, or the first only thinks."""
    if not first.role == second.role == "assistant":
        return False
    only_thinks = bool(first.reasoning.strip()) and not first.calls and not first.text.strip()
    return bool(second.calls) or only_thinks


def _together(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first.strip() and second.strip() else (second if second.strip() else first)


def _without_closing(said: list[Said], notes: Counter[str]) -> list[Said]:
    """Leave out what the user says last, such as a thank-you, where the teacher had answered before."""
    end = len(said)
    while end and said[end - 1].role == "user":
        end -= 1
    last = said[end - 1] if 0 < end < len(said) else None
    if last is None or last.role == "system" or last.calls:
        return said
    notes["closing user message left out"] += 1
    return said[:end]


def match_responses(
    calls: Sequence[RequestedCall], responses: Sequence[Said], where: str, notes: Counter[str]
) -> list[Said]:
    """Find the response of every call of one turn: by id, else by order, else by the tools' names.

    Ids say nothing where no call has one, or where the responses repeat the calls' ids, twice given ones included, in
    the calls' order.

    Args:
        calls: The turn's calls.
        responses: The tool messages that follow it.
        where: The turn's place.
        notes: Counts of the changes.

    Returns:
        One response per call, in the calls' order.

    Raises:
        RecordError: A call has no response, a response has no call, two calls of the turn share an id, only some of
            them have one, or a response names another tool.
    """
    ids = [request.id for request in calls]
    answered = [response.call_id for response in responses]
    if any(answered) and not all(answered):
        bare = next(response for response in responses if not response.call_id)
        raise RecordError("ids do not match", bare.where, "has no call id, while other responses of this turn have one")
    by_id = any(answered) and any(ids) and not (ids == answered and len(set(ids)) < len(ids))
    if any(answered) and not by_id:
        notes["responses matched by order, since ids are missing or stand twice"] += 1
    matched = _by_id(calls, responses, where) if by_id else list(responses)
    if len(matched) < len(calls):
        name = calls[len(matched)].call["name"]
        problem = f"calls {len(calls)} tools but has {len(matched)} responses; {name!r} has none"
        raise RecordError("call without response", where, problem)
    if len(matched) > len(calls):
        problem = f"is response {len(calls) + 1} to a turn of {len(calls)} calls"
        raise RecordError("response without call", matched[len(calls)].where, problem)
    if not by_id:
        matched = _by_name(calls, matched, notes)
    for request, response in zip(calls, matched, strict=True):
        if response.tool and response.tool != request.call["name"]:
            problem = f"is a response of {response.tool!r}, but the call is of {request.call['name']!r}"
            raise RecordError("response of another tool", response.where, problem)
    return matched


def _by_name(calls: Sequence[RequestedCall], responses: list[Said], notes: Counter[str]) -> list[Said]:
    """Order responses that name their tools as the calls are ordered; each call's name must have its response."""
    names = [request.call["name"] for request in calls]
    given = [response.tool for response in responses]
    if given == names or sorted(given) != sorted(names):
        return responses
    notes["responses put into the order of the calls, by the tools' names"] += 1
    left = list(responses)
    return [left.pop(next(i for i, response in enumerate(left) if response.tool == name)) for name in names]


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

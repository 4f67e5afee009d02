"""Disqualifying problems of an expert trace: leaks into its prefixes, and malformed turns (METHOD sections 1 and 6)."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile

from pact_lightning.traces.levels import UNSAFE_TYPES, literal_call_spans
from pact_lightning.types.trace import ExpertTrace, ExpertTurn

_CONTROL_TAG = re.compile(
    r"<\|(?:im_start|im_end|endoftext|system|user|assistant|tool)\|>|</?(?:tool_call|tool_response|think|answer)>",
    re.IGNORECASE,
)
_ROLE_LINE = re.compile(
    r"^(?:(?:User|Human|Assistant|System):\s|assistant\s*$|#+ (?:User|Human|Assistant|System)\b)", re.M
)
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?!\s)[^.!?\n]*)*")


@dataclass(frozen=True, slots=True)
class TracePlace:
    """Place in a trace.

    Attributes:
        turn: The turn's index.
        call: The call's index in the turn; ``None`` for the turn as a whole.
    """

    turn: int
    call: int | None = None

    def __str__(self) -> str:
        return f"trace.turns[{self.turn}]{'' if self.call is None else f'.calls[{self.call}]'}"


@dataclass(frozen=True, slots=True)
class TraceProblem:
    """Problem that disqualifies a trace.

    Attributes:
        place: Its place.
        reason: A short name by which such traces are counted.
        text: Details, in one sentence.
    """

    place: TracePlace
    reason: str
    text: str


def leak_reasons(trace: ExpertTrace, answer: str | None = None) -> list[str]:
    """Describe every place where a prefix of the trace gives away the call or the final answer.

    A call that stands literally before the first unsafe chunk breaks the paper's rule [P]. The rules' chunks never do
    that; an annotator's may. The levels cut such a call off all the same, but labels that wrong cannot be trusted
    otherwise. The final answer leaks [D] by an ``<answer>`` tag in a turn's reasoning, or by a sentence of the prefix
    that holds both the word "answer" and the answer itself. The answer alone is no leak: reasoning quotes tool
    responses, and one of them may be the answer.

    Args:
        trace: The trace.
        answer: The reference's final answer, if known.

    Returns:
        One sentence per leak, turn by turn; empty for a clean trace.
    """
    return [leak.text for leak in trace_leaks(trace, answer)]


def trace_leaks(trace: ExpertTrace, answer: str | None = None) -> list[TraceProblem]:
    """Return the leaks of :func:`leak_reasons` with their places."""
    return [
        TraceProblem(TracePlace(index), "leak", reason)
        for index, turn in enumerate(trace.turns)
        for reason in _turn_leaks(index, turn, answer)
    ]


def trace_problems(trace: ExpertTrace, tool_names: Collection[str]) -> list[str]:
    """Describe every problem that the paper's filters find in a trace [P].

    The filters drop traces with unknown tool names, and those with role text or tool-call tags inside tool responses.
    Role text is a chat control token or a line that opens like a speaker's turn [D].

    Args:
        trace: The trace.
        tool_names: Names of the task's tools.

    Returns:
        One sentence per problem, turn by turn; empty for a good trace.
    """
    return [fault.text for fault in trace_faults(trace, tool_names)]


def trace_faults(trace: ExpertTrace, tool_names: Collection[str]) -> list[TraceProblem]:
    """Return the problems of :func:`trace_problems` with their places."""
    return [fault for index, turn in enumerate(trace.turns) for fault in _turn_faults(index, turn, tool_names)]


def _turn_leaks(index: int, turn: ExpertTurn, answer: str | None) -> Iterator[str]:
    safe = takewhile(lambda chunk: chunk.type not in UNSAFE_TYPES, turn.chunks)
    prefix = "".join(chunk.text for chunk in safe)
    for start, end in sorted(literal_call_spans(prefix, turn.calls))[:1]:
        yield f"Turn {index}: chunks that count as safe hold the call literally: {prefix[start:end]!r}."
    if re.search(r"</?answer>", turn.reasoning, re.IGNORECASE):
        yield f"Turn {index}: the reasoning holds an <answer> tag."
    stated = answer.strip().rstrip(".") if answer else ""
    if stated:
        holds_answer = re.compile(rf"(?<!\w){re.escape(stated)}(?!\w)", re.IGNORECASE)
        for sentence in _SENTENCE.findall(prefix):
            if re.search(r"\banswer\b", sentence, re.IGNORECASE) and holds_answer.search(sentence):
                yield f"Turn {index}: chunks that count as safe state the final answer: {sentence.strip()!r}."


def _turn_faults(index: int, turn: ExpertTurn, tool_names: Collection[str]) -> Iterator[TraceProblem]:
    for number, call in enumerate(turn.calls):
        if call["name"] not in tool_names:
            text = f"Turn {index}: the trace calls {call['name']!r}, which is not among the task's tools."
            yield TraceProblem(TracePlace(index, number), "unknown tool", text)
    for number, response in enumerate(turn.responses):
        tag, role = _CONTROL_TAG.search(response), _ROLE_LINE.search(response)
        place = TracePlace(index, number)
        if tag:
            text = f"Turn {index}: response {number} holds the control tag {tag.group()!r}."
            yield TraceProblem(place, "control tag in a response", text)
        if role:
            text = f"Turn {index}: response {number} holds role text: {role.group().strip()!r}."
            yield TraceProblem(place, "role text in a response", text)

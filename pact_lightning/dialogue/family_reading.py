"""Reader of a turn that the library ``renderers`` has parsed: its parts, and the component of every character."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.turn_text import THINK_CLOSE, THINK_OPEN
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.types.trajectory import Component, RolloutTurn
from pact_lightning.utils.json_text import JsonTextError, check_json, check_text

_MISTAKES = {
    "invalid_json": "is not valid JSON, or an argument is not of its parameter's type",
    "unclosed_block": "is not closed",
    "missing_name": "has no name",
    "malformed_structure": "is not in the format of calls",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A turn as it is read.

    Attributes:
        turn: Its parts.
        labels: :class:`Component` of each entry of its stream, ``[S]``.
        owners: The token that each entry begins in, ``[S]``.
        reasoning: Entries of the reasoning, in order.
        call_ids: The calls' own ids, where the family has them.
    """

    turn: RolloutTurn
    labels: npt.NDArray[np.int64]
    owners: Sequence[int]
    reasoning: tuple[int, ...]
    call_ids: tuple[str | None, ...]

    def by_token(self, tokens: int) -> npt.NDArray[np.int64]:
        """Give each token the component of the character that it begins with, or begins inside, ``[N]``."""
        if not len(self.owners):
            return np.full(tokens, int(Component.DELIMITER), dtype=np.int64)
        owners = np.asarray(self.owners, dtype=np.int64)
        first = np.searchsorted(owners, np.arange(tokens))
        begins = owners[np.minimum(first, len(owners) - 1)] == np.arange(tokens)
        return self.labels[np.maximum(np.where(begins, first, first - 1), 0)]


@dataclass(frozen=True, slots=True)
class OwnThinking:
    """Thinking in this package's marks, at the start of a turn of a family that has none of its own.

    Attributes:
        text: The thinking.
        begin: Character of the turn at which it begins.
        closed: Whether it ends.
    """

    text: str
    begin: int
    closed: bool


def own_thinking(flat: Sequence[str]) -> tuple[int, OwnThinking | None]:
    """Find thinking in our own marks at the start of a turn.

    Args:
        flat: The text of each entry of the turn's stream.

    Returns:
        How many entries it takes, and the thinking.
    """
    text = "".join(flat)
    start = len(text) - len(text.lstrip())
    if not text.startswith(THINK_OPEN, start):
        return 0, None
    begin = start + len(THINK_OPEN)
    close = text.find(THINK_CLOSE, begin)
    if close < 0:
        return len(flat), OwnThinking(text[begin:], begin, closed=False)
    ends = np.cumsum([len(part) for part in flat])
    return int(np.searchsorted(ends, close + len(THINK_CLOSE))) + 1, OwnThinking(text[begin:close], begin, closed=True)


def reading_of(
    parsed: Any,
    flat: Sequence[str],
    controls: npt.NDArray[np.bool_],
    owners: Sequence[int],
    *,
    thought: OwnThinking | None,
    shift: int,
    tools: Sequence[ToolSchema] = (),
) -> Reading:
    """Label a turn by what the library found in it.

    Args:
        parsed: The library's ``ParsedResponse``.
        flat: The text of each entry of the turn's stream ``[S]``; empty for the token that ended it.
        controls: Which entries are control tokens, ``[S]``.
        owners: The token that each entry begins in, ``[S]``.
        thought: Thinking that the library did not see.
        shift: What is to be added to the library's places.
        tools: The tools on offer.
    """
    cut_off = thought is not None and not thought.closed
    calls = [] if cut_off else parsed.tool_calls
    reasoning = (parsed.reasoning_content or "") if thought is None else thought.text
    reasoning, content = reasoning.strip(), "" if cut_off else parsed.content.strip()
    labels = np.full(len(flat), int(Component.DELIMITER), dtype=np.int64)
    said = sum(bool(part) for part in flat)
    for call in calls:
        if call.token_span is not None:
            start, stop = (min(max(place + shift, 0), said) for place in call.token_span)
            labels[start:stop] = Component.TOOL_CALL
    free = np.flatnonzero(labels[:said] == Component.DELIMITER)
    if thought is None:
        thinking = _located(reasoning, flat, controls, free)
    else:
        begin = thought.begin + len(thought.text) - len(thought.text.lstrip())
        thinking = [n for n, part in enumerate(flat) for _ in part][begin : begin + len(reasoning)]
    labels[thinking] = Component.REASONING
    rest = free[free > thinking[-1]] if thinking else free
    # As in ChatML: what stands in front of a call in a turn without thinking is its reasoning.
    kind = Component.ANSWER if not calls else Component.DELIMITER if reasoning else Component.REASONING
    labels[_located(content, flat, controls, rest)] = kind
    turn = RolloutTurn(
        text=_whole("".join(flat)),
        reasoning=_whole(reasoning),
        answer="" if calls else _whole(content),
        parsed=tuple(_parsed(call, tools) for call in calls),
        before_calls=_whole(content) if calls else "",
    )
    return Reading(turn, labels, owners, tuple(thinking), tuple(call.id for call in calls))


def _located(
    part: str, flat: Sequence[str], controls: npt.NDArray[np.bool_], places: npt.NDArray[np.int64]
) -> list[int]:
    """Find the entries of a stream that a part of a turn was read from.

    Looked for is a run without control tokens that is the part, else one that ends with it, else the part anywhere,
    else its lines.
    """
    if not part:
        return []
    cuts = np.flatnonzero(controls[places[:-1]] | controls[places[1:]] | (np.diff(places) > 1)) + 1
    runs = ["".join(flat[place] for place in run).rstrip() for run in np.split(places, cuts)]
    starts = [0, *cuts.tolist()]
    # Behind a line of its own stands the name of Gemma's channel.
    whole = [n for n, text in enumerate(runs) if part in (text.strip(), text.partition("\n")[2].strip())]
    for number in whole or [n for n, text in enumerate(runs) if text.endswith(part)]:
        end = starts[number] + len(runs[number])
        return [int(place) for place in places[end - len(part) : end]]
    text = "".join(flat[place] for place in places)
    owners = [int(place) for place in places for _ in flat[place]]
    found: list[int] = []
    at = 0
    pieces = [part] if part in text else [line.strip() for line in part.splitlines()]
    for piece in filter(None, pieces):
        start = text.find(piece, at)
        if start >= 0:
            at = start + len(piece)
            found += owners[start:at]
    return found


_WORDS = {"True": True, "False": False, "None": None}


def _by_words(call: Any, tools: Sequence[ToolSchema]) -> dict[str, Any] | None:
    """Read ``True``, ``False`` and ``None`` as what they mean: so Qwen3.5's own template writes them [D].

    Returns:
        The arguments; ``None`` where another one is not of its parameter's type.
    """
    schemas = [tool["function"].get("parameters") or {} for tool in tools if tool["function"]["name"] == call.name]
    declared = (schemas[0].get("properties") or {}) if schemas else {}
    read: dict[str, Any] = {}
    for name, value in call.arguments.items():
        texts = not isinstance(value, str) or _may_be_text(declared.get(name))
        if not texts and value not in _WORDS:
            return None
        read[name] = value if texts else _WORDS[value]
    return read


def _may_be_text(schema: Any) -> bool:
    """Return whether a parameter may be a text, as the library decides it."""
    if not isinstance(schema, dict):
        return False
    branches = [schema, *(schema.get("anyOf") or schema.get("oneOf") or [])]
    return any(isinstance(branch, dict) and branch.get("type") in ("string", ["string"]) for branch in branches)


def _parsed(call: Any, tools: Sequence[ToolSchema]) -> ParsedCall:
    """Take a call of the library's, strictly: a name, an object of arguments, all of it JSON."""
    problem = _MISTAKES.get(str(call.status))
    if problem is not None and str(call.status) == "invalid_json" and isinstance(call.arguments, dict):
        read = _by_words(call, tools)
        if read is not None:
            return ParsedCall(ToolCall(name=call.name, arguments=read))
    if problem is not None:
        return ParsedCall(None, f"The tool call {problem}.")
    if not isinstance(call.name, str) or not call.name:
        return ParsedCall(None, 'The tool call has no "name" string.')
    if not isinstance(call.arguments, dict):
        return ParsedCall(None, 'The tool call has no "arguments" object.')
    try:
        check_json(call.arguments)
        check_text(call.name)
    except JsonTextError as error:
        return ParsedCall(None, f"The tool call {error.brief}.")
    return ParsedCall(ToolCall(name=call.name, arguments=call.arguments))


def _whole(text: str) -> str:
    """Return a text in which bytes that are no part of a character are shown as such."""
    return text.encode(errors="surrogateescape").decode(errors="replace")

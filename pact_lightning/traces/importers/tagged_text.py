"""Takes the reasoning and the calls out of a teacher's text with ``<think>`` and ``<tool_call>`` tags."""

import re
from collections import Counter
from typing import NamedTuple

from pact_lightning.traces.importers.conversation import RecordError, RequestedCall
from pact_lightning.traces.importers.fields import read_call_text

_OPEN, _CLOSE = "<think>", "</think>"
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


class Spoken(NamedTuple):
    """What a teacher's text consists of."""

    reasoning: str
    text: str
    calls: tuple[RequestedCall, ...]


def split_thinking(text: str, field: str) -> tuple[str, str]:
    """Reasoning and the rest of a text.

    The opening tag may be missing, since some chat templates put it into the prompt. White space around either part
    is left out.

    Args:
        text: The text.
        field: Where it stands.

    Raises:
        RecordError: The thinking is never closed: the teacher was cut off in it.

    >>> split_thinking("<think> Hm. </think> Yes.", "")
    ('Hm.', 'Yes.')
    >>> split_thinking("Just text.", "")
    ('', 'Just text.')
    """
    body = text.strip()
    if body.startswith(_OPEN):
        body = body.removeprefix(_OPEN)
        if _CLOSE not in body:
            raise RecordError("unclosed thinking", field, f"opens {_OPEN} and never closes it")
    reasoning, close, rest = body.partition(_CLOSE)
    return (reasoning.strip(), rest.strip()) if close else ("", body)


def split_text(text: str, field: str, notes: Counter[str]) -> Spoken:
    """Reasoning, text and ``<tool_call>`` blocks (one call each) of a teacher's message.

    Args:
        text: The message.
        field: Where it stands.
        notes: What was changed to make it fit.

    Raises:
        RecordError: Thinking or a call is not closed, or a call is malformed.
    """
    reasoning, rest = split_thinking(text, field)
    calls = []
    for number, match in enumerate(_CALL.finditer(rest)):
        if not match.group(2):
            raise RecordError("malformed call", field, f"tool call {number} is not closed with </tool_call>")
        calls.append(RequestedCall(read_call_text(match.group(1), field, notes)))
    return Spoken(reasoning, _CALL.sub("", rest).strip(), tuple(calls))

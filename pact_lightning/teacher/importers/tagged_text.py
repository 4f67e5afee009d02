"""Text of a teacher with ``<think>`` and ``<tool_call>`` tags."""

import re
from typing import NamedTuple

from pact_lightning.teacher.importers.calls import calls_in_text
from pact_lightning.teacher.importers.conversation import Reading, RecordError, RequestedCall

_OPEN, _CLOSE = "<think>", "</think>"
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


class Spoken(NamedTuple):
    """Parts of a teacher's text."""

    reasoning: str
    text: str
    calls: tuple[RequestedCall, ...]


def split_text(text: str, field: str, reading: Reading, *, calls_follow: bool = False) -> Spoken:
    """Split a teacher's message into reasoning, text and ``<tool_call>`` blocks.

    The opening of the thinking may be missing, since some chat templates put it into the prompt.

    Args:
        text: The message.
        field: The field's place.
        reading: Counts of the changes that make it fit.
        calls_follow: The calls stand elsewhere, so that thinking which is never closed is the whole text.

    Raises:
        RecordError: Thinking or a call is not closed, or a call is malformed.

    >>> split_text("<think> Hm. </think> Yes.", "", Reading())
    Spoken(reasoning='Hm.', text='Yes.', calls=())
    """
    reasoning, rest = _split_thinking(text, field, reading, calls_follow)
    calls: list[RequestedCall] = []
    for number, match in enumerate(_CALL.finditer(rest)):
        if not match.group(2):
            raise RecordError("malformed call", field, f"tool call {number} is not closed with </tool_call>")
        calls += calls_in_text(match.group(1), field, reading)
    return Spoken(reasoning, _CALL.sub("", rest).strip(), tuple(calls))


def _split_thinking(text: str, field: str, reading: Reading, calls_follow: bool) -> tuple[str, str]:
    body = text.strip()
    if body.startswith(_OPEN):
        body = body.removeprefix(_OPEN)
        if _CLOSE not in body:
            if not calls_follow:
                raise RecordError("unclosed thinking", field, f"opens {_OPEN} and never closes it")
            reading.notes["unclosed thinking beside calls taken as the reasoning"] += 1
            return body.strip(), ""
    reasoning, close, rest = body.partition(_CLOSE)
    return (reasoning.strip(), rest.strip()) if close else ("", body)

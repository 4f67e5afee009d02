"""Text of a teacher with ``<think>`` and ``<tool_call>`` tags."""

from typing import NamedTuple

from pact_lightning.dialogue.turn_text import THINK_OPEN, joined_spans, read_layout
from pact_lightning.teacher.importers.calls import calls_in_text
from pact_lightning.teacher.importers.conversation import Reading, RecordError, RequestedCall


class Spoken(NamedTuple):
    """Parts of a teacher's text."""

    reasoning: str
    text: str
    calls: tuple[RequestedCall, ...]


def split_text(text: str, field: str, reading: Reading, *, calls_follow: bool = False) -> Spoken:
    """Split a teacher's message into reasoning, text and ``<tool_call>`` blocks.

    It is read as a rollout's turn is, by :func:`~pact_lightning.dialogue.turn_text.read_layout`.

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
    layout = read_layout(text)
    if layout.open_thinking:
        if not calls_follow:
            raise RecordError("unclosed thinking", field, f"opens {THINK_OPEN} and never closes it")
        reading.notes["unclosed thinking beside calls taken as the reasoning"] += 1
    calls: list[RequestedCall] = []
    for number, block in enumerate(layout.blocks):
        if not block.closed:
            raise RecordError("malformed call", field, f"tool call {number} is not closed with </tool_call>")
        calls += calls_in_text(text[slice(*block.inner)], field, reading)
    return Spoken(joined_spans(text, layout.thinking), joined_spans(text, layout.rest), tuple(calls))

"""Reader of an assistant turn's text: where the thinking, the tool calls and the rest stand.

There is no other: rollouts, a teacher's replies and imported records are all read by :func:`read_layout`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pact_lightning.dialogue.tool_text import CALL_CLOSE, CALL_OPEN, CallBlock, block_at

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
MARKS = (THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE)
"""Marks of a turn's parts."""

Span = tuple[int, int]
"""Start and stop of a part of a text."""

_MARK = re.compile(f"{THINK_OPEN}|{THINK_CLOSE}|{CALL_OPEN}")


@dataclass(frozen=True, slots=True)
class TurnLayout:
    """Places of a turn's parts in its text, in order.

    Attributes:
        thinking: Thinking, without its marks.
        blocks: Tool calls outside the thinking.
        rest: All else; some may be white space alone.
        open_thinking: Whether the thinking does not end.
    """

    thinking: tuple[Span, ...]
    blocks: tuple[CallBlock, ...]
    rest: tuple[Span, ...]
    open_thinking: bool

    @property
    def outside(self) -> tuple[Span, ...]:
        """All outside the thinking, tool calls included."""
        spans: list[Span] = []
        for start, stop in sorted([*self.rest, *((block.start, block.stop) for block in self.blocks)]):
            joins = bool(spans) and spans[-1][1] == start
            spans.append((spans.pop()[0] if joins else start, stop))
        return tuple(spans)

    @property
    def before_calls(self) -> tuple[Span, ...]:
        """The rest in front of the first tool call; all of it in a turn without calls."""
        return tuple(span for span in self.rest if not self.blocks or span[1] <= self.blocks[0].start)

    @property
    def behind_calls(self) -> tuple[Span, ...]:
        """The rest behind the first tool call."""
        return self.rest[len(self.before_calls) :]


def read_layout(text: str, *, in_thinking: bool = False) -> TurnLayout:
    r"""Find thinking, tool calls and the rest in the text of one assistant turn.

    What is [D] of it:

    - A ``</think>`` without an opening ends thinking that began where the last thinking ended, else at the start: many
      templates open the thinking in the prompt. A turn may think several times.
    - A ``<tool_call>`` inside the thinking is no call; neither is one in thinking that never ends.
    - No mark counts that stands in the JSON of a closed tool call.

    Args:
        text: The text.
        in_thinking: Whether the prompt has opened the thinking.

    >>> text = "Two?\n</think>\n\n<answer>2</answer>"
    >>> joined_spans(text, read_layout(text).thinking), joined_spans(text, read_layout(text).rest)
    ('Two?', '<answer>2</answer>')
    """
    thinking: list[Span] = []
    blocks: list[CallBlock] = []
    rest: list[Span] = []
    inside, start, at = in_thinking, 0, 0
    while (mark := _MARK.search(text, at)) is not None:
        at = mark.end()
        if mark[0] == CALL_OPEN:
            block = block_at(text, mark.start())
            if inside or (not block.whole and text.find(THINK_CLOSE, at, block.stop) >= 0):
                at = block.stop if block.whole else at
                continue
            rest.append((start, block.start))
            blocks.append(block)
            start = at = block.stop
        elif mark[0] == THINK_OPEN:
            if not inside:
                rest.append((start, mark.start()))
                inside, start = True, at
            elif not text[start : mark.start()].strip():
                start = at
        else:
            if not inside:
                start, _ = thinking.pop() if thinking else (0, 0)
                blocks = [block for block in blocks if block.stop <= start]
                rest = [span for span in rest if span[1] <= start]
            thinking.append((start, mark.start()))
            inside, start = False, at
    (thinking if inside else rest).append((start, len(text)))
    return TurnLayout(tuple(thinking), tuple(blocks), tuple(rest), inside)


def joined_parts(parts: Iterable[str]) -> str:
    """Join parts of a text as paragraphs, without those that are white space alone."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def joined_spans(text: str, spans: Iterable[Span]) -> str:
    """Join parts of a text, given by their places; see :func:`joined_parts`."""
    return joined_parts(text[start:stop] for start, stop in spans)

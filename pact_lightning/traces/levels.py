"""Levels L0 to L4: the active prefix of a turn's reasoning, which never holds the call (METHOD sections 5.2 and 6)."""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType

MAX_LEVEL = 4
"""L4, the longest safe prefix [P]."""
NEVER = MAX_LEVEL + 1
"""The "level" of a character that no level makes active."""
UNSAFE_TYPES: frozenset[ChunkType] = frozenset({ChunkType.EXPLICIT_CALL_PREVIEW, ChunkType.FINAL_ANSWER_GROUNDING})
"""Types that end every prefix: previews of the call [P], and statements of the answer [D]."""

_CALL_TAG = re.compile(r"</?tool_call>", re.IGNORECASE)
_IGNORED = re.compile(r"[\s\"'`\\“”‘’]")
_NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name")


def prefix_ends(chunks: Sequence[Chunk], calls: Sequence[ToolCall]) -> tuple[int, int, int, int, int]:
    """Compute the length of the active reasoning prefix of one turn at L0 to L4.

    L0 is empty, L1 is the first safe chunk, L4 is every chunk before the first unsafe one [P]; L2 and L3 lie evenly in
    between by number of chunks [D]. A prefix includes the white space after its last chunk [D]: a tokenizer may join
    it to the full stop before, and such a token must not fall between two levels.

    Whatever the chunks' types say, no prefix holds a chunk in which a call begins literally (see
    :func:`literal_call_spans`), nor any chunk behind it.

    Args:
        chunks: The turn's chunks, in order.
        calls: The turn's calls.

    Returns:
        Characters from the start of the reasoning, one number per level, never decreasing.

    >>> prefix_ends([Chunk("Who asks? "), Chunk("Which tool? "), Chunk("add(1)")], [{"name": "add", "arguments": {}}])
    (0, 10, 10, 22, 22)
    """
    chunk_ends = list(accumulate(len(chunk.text) for chunk in chunks))
    safe = next((i for i, chunk in enumerate(chunks) if chunk.type in UNSAFE_TYPES), len(chunks))
    spans = literal_call_spans("".join(chunk.text for chunk in chunks), calls)
    if spans:
        safe = min(safe, bisect_right(chunk_ends, min(spans)[0]))
    if safe == 0:
        return (0, 0, 0, 0, 0)
    counts = [1 + (2 * (safe - 1) * step + 3) // 6 for step in range(MAX_LEVEL)]
    first, second, third, last = (chunk_ends[count - 1] for count in counts)
    return (0, first, second, third, last)


def min_level_at(char_end: int, ends: Sequence[int]) -> int:
    """Return the lowest level whose prefix holds a character span.

    Args:
        char_end: The span's end (exclusive), in characters from the start of the turn's reasoning.
        ends: The turn's :func:`prefix_ends`.

    Returns:
        A level, or ``NEVER`` (5) for a span that no prefix holds.

    Raises:
        ValueError: ``char_end`` is below 1.

    >>> [min_level_at(end, (0, 10, 10, 22, 22)) for end in (10, 11, 23)]
    [1, 3, 5]
    """
    if char_end < 1:
        raise ValueError(f"char_end is {char_end}; a span inside the reasoning ends at character 1 or later")
    return next((level for level, end in enumerate(ends) if char_end <= end), NEVER)


def literal_call_spans(text: str, calls: Sequence[ToolCall]) -> list[tuple[int, int]]:
    """Find the places where a call stands literally in a text.

    Literal is [D]: a ``<tool_call>`` tag; an object that opens with the called name (``{"name": "add"``); an object
    with all of a call's arguments, in any order; the called name with an opening bracket (``add(``). Case, quotes,
    backslashes and white space inside objects make no difference, so Python dictionaries and escaped JSON count too.

    Args:
        text: Any text.
        calls: The calls to look for.

    Returns:
        Character spans ``(start, end)``, at least the marked part of each; unordered, may overlap.
    """
    spans = [match.span() for match in _CALL_TAG.finditer(text)]
    squashed, positions = _squash(text)
    for call in calls:
        if call["name"].strip():
            spans += [match.span() for match in _call_syntax(call).finditer(text)]
        spans += [(positions[start], positions[end - 1] + 1) for start, end in _object_spans(squashed, call)]
    return spans


def _call_syntax(call: ToolCall) -> re.Pattern[str]:
    """Match ``name(``, and ``name (`` only before an argument's name, since prose has brackets."""
    name = re.escape(call["name"])
    arguments = "|".join(re.escape(argument) for argument in call["arguments"] if argument)
    spaced = rf"|{name}[\"'`]?\s*\(\s*[\"'`]?(?:{arguments})[\"'`]?\s*[=:]" if arguments else ""
    return re.compile(rf"{name}[\"'`]?\({spaced}", re.IGNORECASE)


def _object_spans(squashed: str, call: ToolCall) -> list[tuple[int, int]]:
    """Find objects in a squashed text that open with the call's name or hold all of its arguments."""
    name = _squash(call["name"])[0]
    heads = [f"{{{key}:{name}" for key in _NAME_KEYS] if name else []
    members = [_member_forms(key, value) for key, value in call["arguments"].items()]
    spans = []
    for opening in (i for i, character in enumerate(squashed) if character == "{"):
        spans += [(opening, opening + len(head)) for head in heads if squashed.startswith(head, opening)]
        end = _match_members(squashed, opening + 1, members) if members else None
        if end is not None:
            spans.append((opening, end))
    return spans


def _match_members(squashed: str, at: int, members: Sequence[Sequence[str]]) -> int | None:
    """Return the end of a run of all members, in any order, that starts at ``at``; ``None`` without one."""
    left = list(members)
    while left:
        hits = [(len(form), i) for i, forms in enumerate(left) for form in forms if squashed.startswith(form, at)]
        if not hits:
            return None
        length, index = max(hits)
        del left[index]
        at += length
        if squashed[at : at + 1] not in {",", "}"}:
            return None
        at += 1
    return at


def _member_forms(key: str, value: Any) -> tuple[str, ...]:
    """Return the squashed forms of ``key: value`` inside an object: JSON, ASCII JSON, Python."""
    forms = (
        json.dumps({key: value}, ensure_ascii=False),
        json.dumps({key: value}),
        repr({key: value}),
    )
    return tuple(dict.fromkeys(_squash(form[1:-1])[0] for form in forms))


def _squash(text: str) -> tuple[str, list[int]]:
    """Lower-case a text and drop white space, quotes and backslashes.

    Returns:
        The squashed text and, for each of its characters, its position in the text.
    """
    pairs = [
        (lowered, position)
        for position, character in enumerate(text)
        if not _IGNORED.match(character)
        for lowered in character.lower()
    ]
    return "".join(lowered for lowered, _ in pairs), [position for _, position in pairs]

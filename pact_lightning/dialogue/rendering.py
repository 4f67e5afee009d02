"""Dialogues as token segments: ChatML in Qwen's tool format, with the prefix property.

Earlier thinking stays in the stream, so that every turn's tokens extend the ones before; on the first turn the
result equals Qwen3's released template token for token.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.dialogue.tool_text import (
    Piece,
    json_text,
    parse_tool_calls,
    response_pieces,
    system_pieces,
    user_pieces,
)
from pact_lightning.types.prompt import Message, ToolSchema, UserTurn
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment

END_OF_TURN = "<|im_end|>"
_GENERATION_PROMPT = "<|im_start|>assistant\n"
_THINKING = re.compile(rb"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_CALLS = re.compile(rb"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """One assistant turn as tokens.

    Attributes:
        ids: Token ids, ``[N]``, the end-of-turn token included.
        components: :class:`Component` of every token, ``[N]``.
        reasoning_end: Character of the reasoning at which each token ends, ``[N]``; 0 outside the reasoning.
    """

    ids: npt.NDArray[np.int64]
    components: npt.NDArray[np.int64]
    reasoning_end: npt.NDArray[np.int64]


class ChatRenderer:
    """Renders prompts, observations and expert turns for one tokenizer, and reads sampled turns.

    Args:
        codec: The tokenizer's codec.
    """

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.end_of_turn = codec.control_id(END_OF_TURN)
        codec.control_id("<|im_start|>")
        self._marks_are_tokens = all(map(codec.has_control, ("<think>", "</think>", "<tool_call>", "</tool_call>")))

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """The prompt ``x``: system turn with the tools' schemas, user turns, and the opened assistant turn.

        Raises:
            ValueError: A message is neither a leading system message nor a user message.
        """
        pieces: list[Piece] = []
        rest = list(messages)
        system = str(rest.pop(0)["content"]) if rest and rest[0]["role"] == "system" else None
        if tools or system is not None:
            pieces += [("<|im_start|>system\n", True), *system_pieces(system, tools), ("<|im_end|>\n", True)]
        for message in rest:
            if message["role"] != "user":
                raise ValueError(
                    f"a prompt may hold one leading system message and user messages, not {message['role']!r}"
                )
            pieces += [("<|im_start|>user\n", True), (str(message["content"]), False), ("<|im_end|>\n", True)]
        pieces.append((_GENERATION_PROMPT, True))
        return self.codec.mixed(pieces)

    def observation(self, responses: Sequence[str]) -> list[int]:
        """What follows a turn that called tools, up to the next opened assistant turn."""
        return self._user_turn(response_pieces(responses))

    def user_turn(self, turn: UserTurn) -> list[int]:
        """What follows an answered user turn: the next one, and the opened assistant turn."""
        return self._user_turn(user_pieces(turn.content, turn.tools))

    def _user_turn(self, content: Sequence[Piece]) -> list[int]:
        end = "<|im_end|>\n" + _GENERATION_PROMPT
        return self.codec.mixed([("\n<|im_start|>user\n", True), *content, (end, True)])

    def expert_turn(self, reasoning: str, calls: Sequence[ToolCall], answer: str = "") -> RenderedTurn:
        """An expert's turn, as the policy would have to write it."""
        pieces: list[Piece] = []
        if reasoning:
            pieces += [("<think>\n", True), (reasoning, False), ("\n</think>\n\n", True)]
        if calls:
            blocks = "\n".join(f"<tool_call>\n{json_text(dict(call))}\n</tool_call>" for call in calls)
            pieces += self._call_pieces(blocks)
        else:
            pieces.append((answer, False))
        pieces.append((END_OF_TURN, True))
        ids = np.array(self.codec.mixed(pieces), dtype=np.int64)
        return self._labelled(ids, reasoning)

    @staticmethod
    def _call_pieces(blocks: str) -> list[Piece]:
        """The blocks' tags are ours, what stands between them is not."""
        pieces: list[Piece] = []
        for part in re.split(r"(<tool_call>\n|\n</tool_call>\n?)", blocks):
            if part:
                pieces.append((part, part.strip() in ("<tool_call>", "</tool_call>")))
        return pieces

    def _labelled(self, ids: npt.NDArray[np.int64], reasoning: str) -> RenderedTurn:
        pieces = [self.codec.token_bytes(index) for index in ids.tolist()]
        ends = np.cumsum([len(piece) for piece in pieces])
        if self._marks_are_tokens:
            # Then a mark in plain tokens is one that the expert quotes, and must not be taken for the real one.
            pieces = [
                piece if self.codec.is_control(index) else piece.replace(b"<", b"(")
                for index, piece in zip(ids.tolist(), pieces, strict=True)
            ]
        components = _components(pieces)
        reasoning_end = np.zeros_like(ids)
        head = len(b"<think>\n")
        # Levels count in characters. One that a token has begun counts: no prefix ends inside a character.
        encoded = np.frombuffer(reasoning.encode(), dtype=np.uint8)
        begun = np.concatenate([[0], np.cumsum(encoded & 0xC0 != 0x80)])
        inside = np.flatnonzero(components == Component.REASONING)
        reasoning_end[inside] = begun[np.clip(ends[inside] - head, 0, len(encoded))]
        return RenderedTurn(ids, components, reasoning_end)

    def components(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Labels the tokens of one assistant turn, sampled or rendered, ``[N]``.

        A token that straddles two components (Qwen has one for a full stop with a line break) gets the first one.
        """
        return _components([self.codec.token_bytes(index) for index in ids])

    def read_turn(self, ids: Sequence[int]) -> RolloutTurn:
        """Reads a sampled turn: reasoning, calls (or what is wrong with them), answer; responses still missing."""
        kept = [index for index in ids if index != self.end_of_turn]
        text = self.codec.decode(kept)
        reasoning, body = "", text
        if text.startswith("<think>"):
            inside, closed, after = text.removeprefix("<think>").partition("</think>")
            reasoning, body = inside.strip(), after if closed else ""
        parsed = tuple(parse_tool_calls(body))
        return RolloutTurn(text, reasoning, "" if parsed else body.strip(), parsed)

    def turn_segments(self, ids: Sequence[int], turn: int) -> list[Segment]:
        """Cuts a sampled turn into runs of one component."""
        components = self.components(ids)
        cuts = [0, *(np.flatnonzero(np.diff(components)) + 1).tolist(), len(ids)]
        return [
            Segment(tuple(ids[start:stop]), Component(int(components[start])), turn)
            for start, stop in itertools.pairwise(cuts)
            if stop > start
        ]


def _components(pieces: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Labels tokens, given as bytes; see :meth:`ChatRenderer.components`."""
    text = b"".join(pieces)
    labels = np.full(len(text) + 1, int(Component.DELIMITER), dtype=np.int64)
    body = 0
    end = text.rfind(END_OF_TURN.encode())
    end = len(text) if end < 0 else end
    thinking = _THINKING.match(text, 0, end)
    if thinking is not None:
        labels[slice(*_stripped(text, *thinking.span(1)))] = Component.REASONING
        body = thinking.end()
    calls = [match.span() for match in _CALLS.finditer(text, body, end)]
    for span in calls:
        labels[slice(*span)] = Component.TOOL_CALL
    if calls and thinking is None:
        labels[slice(*_stripped(text, body, calls[0][0]))] = Component.REASONING
    if not calls:
        labels[slice(*_stripped(text, body, end))] = Component.ANSWER
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    found: npt.NDArray[np.int64] = labels[starts]
    return found


def _stripped(text: bytes, start: int, stop: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    inner = text[start:stop]
    return start + len(inner) - len(inner.lstrip()), stop - (len(inner) - len(inner.rstrip()))

"""Rendering of dialogues as token ids: ChatML in Qwen's tool format, with the prefix property.

Earlier thinking stays in the stream: every turn's tokens extend the tokens before it. On the first turn the result
equals that of Qwen3's released template token for token.
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
    """Assistant turn as tokens.

    Attributes:
        ids: Token ids, ``[N]``, the end-of-turn token included.
        components: :class:`Component` of every token, ``[N]``.
        reasoning_end: Character of the reasoning at which each token ends, ``[N]``; 0 outside the reasoning.
    """

    ids: npt.NDArray[np.int64]
    components: npt.NDArray[np.int64]
    reasoning_end: npt.NDArray[np.int64]


class ChatRenderer:
    """Renderer of prompts, observations and expert turns for one tokenizer, and reader of sampled turns.

    Args:
        codec: Codec of the tokenizer.

    Raises:
        ValueError: The tokenizer lacks ChatML's control tokens.
    """

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.end_of_turn = codec.control_id(END_OF_TURN)
        codec.control_id("<|im_start|>")
        self._marks_are_tokens = all(map(codec.has_control, ("<think>", "</think>", "<tool_call>", "</tool_call>")))

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Render the prompt ``x``: system turn with the tools' schemas, user turns, opened assistant turn.

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
        """Render the tool responses after a turn, up to the next opened assistant turn."""
        return self._user_turn(response_pieces(responses))

    def user_turn(self, turn: UserTurn) -> list[int]:
        """Render a later user turn, up to the next opened assistant turn."""
        return self._user_turn(user_pieces(turn.content, turn.tools))

    def _user_turn(self, content: Sequence[Piece]) -> list[int]:
        end = "<|im_end|>\n" + _GENERATION_PROMPT
        return self.codec.mixed([("\n<|im_start|>user\n", True), *content, (end, True)])

    def expert_turn(self, reasoning: str, calls: Sequence[ToolCall], answer: str = "") -> RenderedTurn:
        """Render an expert's turn as the policy would have to write it."""
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
        """Split tool calls into pieces: their tags may become control tokens, the text between them may not."""
        parts = re.split(r"(<tool_call>\n|\n</tool_call>\n?)", blocks)
        return [(part, part.strip() in ("<tool_call>", "</tool_call>")) for part in parts if part]

    def _labelled(self, ids: npt.NDArray[np.int64], reasoning: str) -> RenderedTurn:
        pieces = [self.codec.token_bytes(index) for index in ids.tolist()]
        ends = np.cumsum([len(piece) for piece in pieces])
        if self._marks_are_tokens:
            # A mark in plain tokens is then a quotation of the expert and must not count as a mark.
            pieces = [
                piece if self.codec.is_control(index) else piece.replace(b"<", b"(")
                for index, piece in zip(ids.tolist(), pieces, strict=True)
            ]
        components = _components(pieces)
        reasoning_end = np.zeros_like(ids)
        head = len(b"<think>\n")
        # Levels count characters. A character that a token begins counts: no prefix ends inside one.
        encoded = np.frombuffer(reasoning.encode(), dtype=np.uint8)
        begun = np.concatenate([[0], np.cumsum(encoded & 0xC0 != 0x80)])
        inside = np.flatnonzero(components == Component.REASONING)
        reasoning_end[inside] = begun[np.clip(ends[inside] - head, 0, len(encoded))]
        return RenderedTurn(ids, components, reasoning_end)

    def components(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Label the tokens of one assistant turn, sampled or rendered, ``[N]``.

        A token that straddles two components (Qwen has one for a full stop with a line break) gets the first one.
        """
        return _components([self.codec.token_bytes(index) for index in ids])

    def read_turn(self, ids: Sequence[int]) -> RolloutTurn:
        """Parse a sampled turn into reasoning, calls (or their mistakes) and answer; responses come later."""
        kept = [index for index in ids if index != self.end_of_turn]
        text = self.codec.decode(kept)
        reasoning, body = "", text
        if text.startswith("<think>"):
            inside, closed, after = text.removeprefix("<think>").partition("</think>")
            reasoning, body = inside.strip(), after if closed else ""
        parsed = tuple(parse_tool_calls(body))
        return RolloutTurn(text, reasoning, "" if parsed else body.strip(), parsed)

    def turn_segments(self, ids: Sequence[int], turn: int) -> list[Segment]:
        """Cut a sampled turn into runs of one component."""
        components = self.components(ids)
        cuts = [0, *(np.flatnonzero(np.diff(components)) + 1).tolist(), len(ids)]
        return [
            Segment(tuple(ids[start:stop]), Component(int(components[start])), turn)
            for start, stop in itertools.pairwise(cuts)
            if stop > start
        ]


def _components(pieces: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Label tokens, given as bytes; see :meth:`ChatRenderer.components`."""
    text = b"".join(pieces)
    labels = np.full(len(text) + 1, int(Component.DELIMITER), dtype=np.int64)
    body = 0
    marked = text.rfind(END_OF_TURN.encode())
    end = len(text) if marked < 0 else marked
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
    """Return the span without white space at its ends."""
    inner = text[start:stop]
    return start + len(inner) - len(inner.lstrip()), stop - (len(inner) - len(inner.rstrip()))

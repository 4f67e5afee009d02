"""Rendering of dialogues as token ids: ChatML in Qwen's tool format, with the prefix property.

Earlier thinking stays in the stream: every turn's tokens extend the tokens before it. On the first turn the result
equals that of Qwen3's released template token for token.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.chat_template import OPEN_THINKING, OPEN_TURN, default_system, opens_thinking
from pact_lightning.dialogue.renderer import RenderedTurn, Renderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.dialogue.tool_text import (
    CALL_CLOSE,
    CALL_OPEN,
    Piece,
    call_text,
    parse_call,
    response_pieces,
    system_pieces,
    user_pieces,
)
from pact_lightning.dialogue.turn_text import (
    MARKS,
    THINK_CLOSE,
    THINK_OPEN,
    Span,
    TurnLayout,
    joined_parts,
    read_layout,
)
from pact_lightning.types.prompt import Message, ToolSchema, UserTurn
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trajectory import Component, RolloutTurn

END_OF_TURN = "<|im_end|>"
CHATML = "chatml"
"""Name of this format: Qwen3, Qwen2.5, SmolLM2 and the bundled policy."""


class ChatRenderer(Renderer):
    """Renderer of ChatML in Qwen's tool format, and reader of sampled turns; see :class:`Renderer`.

    Args:
        codec: Codec of the tokenizer.
        end_ids: Tokens that end a turn beside ``<|im_end|>`` and the tokenizer's ``eos_token``.

    Attributes:
        end_of_turn: The id of ``<|im_end|>``.
        opens_thinking: Whether every opened assistant turn ends in ``<think>``, as by the tokenizer's own template.
        default_system: System message of a dialogue without one, by the tokenizer's own template; usually ``None``.

    Raises:
        ValueError: The tokenizer lacks ChatML's control tokens.
    """

    family = CHATML
    template_arguments: Mapping[str, Any] = MappingProxyType({})
    one_call = False

    def __init__(self, codec: TextCodec, end_ids: Iterable[int] = ()) -> None:
        self.codec = codec
        self.end_of_turn = codec.control_id(END_OF_TURN)
        codec.control_id("<|im_start|>")
        eos = codec.tokenizer.eos_token_id
        self.end_ids = frozenset({self.end_of_turn, *end_ids, *([eos] if isinstance(eos, int) else [])})
        self.opens_thinking = opens_thinking(codec.tokenizer)
        self.default_system = default_system(codec.tokenizer)
        self._generation_prompt = OPEN_THINKING if self.opens_thinking else OPEN_TURN
        tokens = "|".join(mark.removeprefix("<") for mark in MARKS if codec.has_control(mark))
        self._quoted_mark = re.compile(f"<(?={tokens})".encode()) if tokens else None

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Render the prompt ``x``; see :meth:`Renderer.prompt`."""
        pieces: list[Piece] = []
        rest = list(messages)
        system = str(rest.pop(0)["content"]) if rest and rest[0]["role"] == "system" else self.default_system
        if tools or system is not None:
            pieces += [("<|im_start|>system\n", True), *system_pieces(system, tools), ("<|im_end|>\n", True)]
        for message in rest:
            if message["role"] != "user":
                raise ValueError(
                    f"a prompt may hold one leading system message and user messages, not {message['role']!r}"
                )
            pieces += [("<|im_start|>user\n", True), (str(message["content"]), False), ("<|im_end|>\n", True)]
        pieces.append((self._generation_prompt, True))
        return self.codec.mixed(pieces)

    def observation(self, responses: Sequence[str], *, after: Sequence[int] = ()) -> list[int]:
        """Render the tool responses after a turn; see :meth:`Renderer.observation`."""
        return self._user_turn(response_pieces(responses), after)

    def user_turn(self, turn: UserTurn, *, after: Sequence[int] = ()) -> list[int]:
        """Render a later user turn; see :meth:`Renderer.user_turn`."""
        return self._user_turn(user_pieces(turn.content, turn.tools), after)

    def _user_turn(self, content: Sequence[Piece], after: Sequence[int]) -> list[int]:
        closed = not after or after[-1] == self.end_of_turn
        start = ("" if closed else END_OF_TURN) + "\n<|im_start|>user\n"
        end = "<|im_end|>\n" + self._generation_prompt
        return self.codec.mixed([(start, True), *content, (end, True)])

    def expert_turn(
        self,
        reasoning: str,
        calls: Sequence[ToolCall],
        answer: str = "",
        *,
        before: Sequence[int] = (),  # every turn opens alike
        tools: Sequence[ToolSchema] = (),  # JSON says its types itself
    ) -> RenderedTurn:
        """Render an expert's turn; see :meth:`Renderer.expert_turn`.

        Where the marks are no tokens of the tokenizer, reasoning or an answer that quotes one is read as if it stood
        there.
        """
        pieces: list[Piece] = []
        if reasoning or self.opens_thinking:
            opening = "" if self.opens_thinking else f"{THINK_OPEN}\n"
            pieces += [(opening, True), (reasoning, False), (f"\n{THINK_CLOSE}\n\n", True)]
        for number, call in enumerate(calls):
            opening = f"{CALL_OPEN}\n" if number == 0 else f"\n{CALL_OPEN}\n"
            pieces += [(opening, True), (call_text(call), False), (f"\n{CALL_CLOSE}", True)]
        if not calls:
            pieces.append((answer, False))
        pieces.append((END_OF_TURN, True))
        ids = np.array(self.codec.mixed(pieces), dtype=np.int64)
        return self._labelled(ids, reasoning)

    def _labelled(self, ids: npt.NDArray[np.int64], reasoning: str) -> RenderedTurn:
        components = self.components(ids.tolist())
        ends = np.cumsum([len(self.codec.token_bytes(index)) for index in ids.tolist()])
        reasoning_end = np.zeros_like(ids)
        head = 0 if self.opens_thinking else len(f"{THINK_OPEN}\n")
        # Levels count characters. A character that a token begins counts: no prefix ends inside one.
        encoded = np.frombuffer(reasoning.encode(), dtype=np.uint8)
        begun = np.concatenate([[0], np.cumsum(encoded & 0xC0 != 0x80)])
        inside = np.flatnonzero(components == Component.REASONING)
        reasoning_end[inside] = begun[np.clip(ends[inside] - head, 0, len(encoded))]
        return RenderedTurn(ids, components, reasoning_end)

    def components(self, ids: Sequence[int], *, before: Sequence[int] = ()) -> npt.NDArray[np.int64]:
        """Label the tokens of one assistant turn, ``[N]``; see :meth:`Renderer.components`."""
        said = self._said(ids)
        text = b"".join(said)
        layout = self._layout(ids, said)
        labels = np.full(len(text) + 1, int(Component.DELIMITER), dtype=np.int64)
        for span in layout.thinking:
            labels[_stripped(text, *span)] = Component.REASONING
        if layout.blocks and not layout.thinking:
            for span in layout.before_calls:
                labels[_stripped(text, *span)] = Component.REASONING
        for block in layout.blocks:
            labels[block.start : block.stop] = Component.TOOL_CALL
        for span in () if layout.blocks else layout.rest:
            labels[_stripped(text, *span)] = Component.ANSWER
        starts = np.cumsum([0, *map(len, said)])[:-1]
        found = np.full(len(ids), int(Component.DELIMITER), dtype=np.int64)
        found[: len(said)] = labels[starts]
        return found

    def read_turn(
        self,
        ids: Sequence[int],
        *,
        before: Sequence[int] = (),  # every turn opens alike
        tools: Sequence[ToolSchema] = (),  # JSON says its types itself
    ) -> RolloutTurn:
        """Parse a sampled turn; see :meth:`Renderer.read_turn`."""
        said = self._said(ids)
        text = b"".join(said)
        layout = self._layout(ids, said)

        def read(spans: Iterable[Span]) -> list[str]:
            return [text[start:stop].decode(errors="replace") for start, stop in spans]

        calls = read(block.inner for block in layout.blocks)
        parsed = tuple(parse_call(call, closed=block.closed) for call, block in zip(calls, layout.blocks, strict=True))
        answer = "" if parsed else joined_parts(read(layout.rest))
        said_first = joined_parts(read(layout.before_calls)) if parsed else ""
        reasoning = joined_parts(read(layout.thinking))
        return RolloutTurn(text.decode(errors="replace"), reasoning, answer, parsed, before_calls=said_first)

    def _said(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of a turn's tokens, without the token that ended it."""
        said = len(ids)
        while said and ids[said - 1] in self.end_ids:
            said -= 1
        return [self.codec.token_bytes(index) for index in ids[:said]]

    def _layout(self, ids: Sequence[int], said: Sequence[bytes]) -> TurnLayout:
        """Find a turn's parts, in bytes of its text.

        A mark that is a token of the tokenizer counts only as that token: written in plain tokens, as in text from
        outside, it is a quotation [D].
        """
        text = b"".join(said)
        if self._quoted_mark is not None:
            runs = itertools.groupby(zip(ids, said, strict=False), lambda pair: self.codec.is_control(pair[0]))
            text = b"".join(
                run if control else self._quoted_mark.sub(b"(", run)
                for control, pairs in runs
                for run in [b"".join(piece for _, piece in pairs)]
            )
        # One character per byte: the marks are ASCII, and their places are those of the bytes.
        return read_layout(text.decode("latin-1"), in_thinking=self.opens_thinking)


def _stripped(text: bytes, start: int, stop: int) -> slice:
    """Return the span without white space at its ends."""
    inner = text[start:stop]
    return slice(start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip()))

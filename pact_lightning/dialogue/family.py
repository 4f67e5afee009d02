"""Renderer of a model family that the library ``renderers`` speaks, with this package's guarantees over it.

See :mod:`~pact_lightning.dialogue.characters` for how the library and our tokens meet.
"""

import json
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.characters import OutsideText, of_text, of_tokens, to_tokens
from pact_lightning.dialogue.family_library import CALLED, REPLIED, LibraryFormat, Stream, call_message
from pact_lightning.dialogue.family_reading import Reading, own_thinking, reading_of
from pact_lightning.dialogue.renderer import RenderedTurn, Renderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.dialogue.tool_text import call_text, joined, user_pieces
from pact_lightning.dialogue.turn_text import THINK_CLOSE, THINK_OPEN
from pact_lightning.types.prompt import Message, ToolSchema, UserTurn
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trajectory import Component, RolloutTurn
from pact_lightning.utils.errors import shortened
from pact_lightning.utils.json_text import JsonTextError, check_text


class FamilyRenderer(Renderer):
    """Renderer of one family; see :class:`Renderer`.

    A family without thinking of its own gets it as ``<think>`` text in front of a turn [D].

    Args:
        codec: Codec of the tokenizer.
        family: Name of the family in ``renderers``.
        end_ids: Tokens that end a turn beside the family's own and the tokenizer's ``eos_token``.

    Raises:
        ImportError: ``renderers`` is not installed.
        ValueError: The library has no such family, or the tokenizer lacks its control tokens.
    """

    def __init__(self, codec: TextCodec, family: str, end_ids: Iterable[int] = ()) -> None:
        self.codec = codec
        self.family = family
        self._format = LibraryFormat(codec, family)
        self._outside = OutsideText(codec)
        eos = codec.tokenizer.eos_token_id
        self.end_ids = frozenset({*self._format.stops, *end_ids, *([eos] if isinstance(eos, int) else [])})
        self.template_arguments = MappingProxyType(self._format.arguments)
        self.one_call = self._format.one_call

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Render the prompt ``x``; see :meth:`Renderer.prompt`.

        Raises:
            ValueError: The family shows no tools, and there are some.
        """
        for number, message in enumerate(messages):
            if message["role"] != "user" and (number or message["role"] != "system"):
                raise ValueError(
                    f"a prompt may hold one leading system message and user messages, not {message['role']!r}"
                )
        given = [{"role": message["role"], "content": self._text(str(message["content"]))} for message in messages]
        ids = self._tokens(self._format.render(given, self._outside.value(list(tools)), opened=True))
        if tools and str(tools[0]["function"]["name"]) not in self.codec.decode(ids):
            raise ValueError(f"the format {self.family!r} shows a model no tools; take a model whose template has them")
        return ids

    def observation(self, responses: Sequence[str], *, after: Sequence[int] = ()) -> list[int]:
        """Render the tool responses after a turn; see :meth:`Renderer.observation`."""
        reading = self._read(after)
        calls = []
        for n in range(len(responses)):
            entry = reading.turn.parsed[n] if n < len(reading.turn.parsed) else None
            name = entry.call["name"] if entry is not None and entry.call is not None else "unknown"
            own = reading.call_ids[n] if n < len(reading.call_ids) else None
            calls.append(call_message(self._text(name), {}, n, own))
        said = {**CALLED, "tool_calls": calls[:1] if self._format.one_call else calls}
        new = [
            {"role": "tool", "content": self._text(text), "tool_call_id": call["id"], "name": call["function"]["name"]}
            for text, call in zip(responses, calls, strict=True)
        ]
        return self._tokens(self._format.after(said, new, after[-1] if after else None))

    def user_turn(self, turn: UserTurn, *, after: Sequence[int] = ()) -> list[int]:
        """Render a later user turn; see :meth:`Renderer.user_turn`. New tools stand in its text [D]."""
        content = self._text(joined(user_pieces(turn.content, turn.tools)))
        new = [{"role": "user", "content": content}]
        return self._tokens(self._format.after(REPLIED, new, after[-1] if after else None))

    def expert_turn(
        self,
        reasoning: str,
        calls: Sequence[ToolCall],
        answer: str = "",
        *,
        before: Sequence[int] = (),
        tools: Sequence[ToolSchema] = (),
    ) -> RenderedTurn:
        """Render an expert's turn; see :meth:`Renderer.expert_turn`."""
        answer = "" if calls else answer
        ids = self._tokens(self._expert_stream(reasoning, calls, answer, before))
        reading = self._read(ids, before, tools)
        self._check_same(reading.turn, reasoning, calls, answer)
        labels = reading.by_token(len(ids))
        # Levels count characters of the expert's own text, also those that reading takes off its ends. A character that
        # a token begins counts: no prefix ends inside one.
        begun = np.zeros(len(ids), dtype=np.int64)
        stripped = len(reasoning) - len(reasoning.lstrip())
        begun[[reading.owners[entry] for entry in reading.reasoning]] = stripped + 1 + np.arange(len(reading.reasoning))
        reasoning_end = np.where(labels == Component.REASONING, np.maximum.accumulate(begun), 0)
        return RenderedTurn(np.array(ids, dtype=np.int64), labels, reasoning_end)

    def read_turn(
        self, ids: Sequence[int], *, before: Sequence[int] = (), tools: Sequence[ToolSchema] = ()
    ) -> RolloutTurn:
        """Parse a sampled turn; see :meth:`Renderer.read_turn`."""
        return self._read(ids, before, tools).turn

    def components(self, ids: Sequence[int], *, before: Sequence[int] = ()) -> npt.NDArray[np.int64]:
        """Label the tokens of one assistant turn, ``[N]``; see :meth:`Renderer.components`."""
        return self._read(ids, before).by_token(len(ids))

    def _text(self, text: str) -> str:
        """Take a text from outside.

        Raises:
            ValueError: It holds half of a surrogate pair.
        """
        try:
            check_text(text)
        except JsonTextError as error:
            raise ValueError(f"the text {shortened(text)} {error} and has no tokens; mend it at its source") from error
        return self._outside.text(text)

    def _tokens(self, stream: Stream) -> list[int]:
        return to_tokens(self.codec, stream)

    def _expert_stream(self, reasoning: str, calls: Sequence[ToolCall], answer: str, before: Sequence[int]) -> Stream:
        message: dict[str, Any] = {"role": "assistant", "content": self._text(answer)}
        thought = self._text(reasoning)
        if self._format.thinks:
            message["reasoning_content"] = thought
        for n, call in enumerate(calls):
            call_text(call)  # it must be JSON
            written = call_message(self._text(call["name"]), self._outside.value(call["arguments"]), n)
            message.setdefault("tool_calls", []).append(written)
        past = self._format.past(before)
        said = self._format.turn(message, past)
        ends = [place for place, index in enumerate(said) if index in self._format.stops]
        if len(ends) > 1:
            raise ValueError(
                f"a turn in the format {self.family!r} ends with its first call; this one has {len(calls)}, make it so "
                "many turns"
            )
        said = said[: ends[0] + 1] if ends else [*said, self._format.closing(has_calls=bool(calls))]
        own = of_text(f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n") if reasoning and not self._format.thinks else []
        return [*own, *said]

    def _read(self, ids: Sequence[int], before: Sequence[int] = (), tools: Sequence[ToolSchema] = ()) -> Reading:
        stream, owners = of_tokens(self.codec, ids)
        end = len(stream)
        while end and stream[end - 1] in self.end_ids:
            end -= 1
        flat = [self._format.characters.text_of(index) for index in stream[:end]] + [""] * (len(stream) - end)
        # Harmony's <|call|> closes the call, so the end is read too; one that the family does not know is left out.
        told = stream[: end + 1] if end < len(stream) and stream[end] in self._format.stops else stream[:end]
        skipped, thought = (0, None) if self._format.thinks else own_thinking(flat)
        parsed, moved = self._format.parse(told[skipped:], self._format.past(before), tools)
        controls = np.array([self.codec.is_control(index) for index in stream], dtype=bool)
        return reading_of(parsed, flat, controls, owners, thought=thought, shift=skipped + moved, tools=tools)

    def _check_same(self, read: RolloutTurn, reasoning: str, calls: Sequence[ToolCall], answer: str) -> None:
        """Refuse an expert's turn that would be read as another one."""
        parts: list[tuple[str, Any, Any]] = [
            ("calls", [entry.call for entry in read.parsed], [dict(call) for call in calls]),
            ("reasoning", read.reasoning, reasoning.strip()),
            ("answer", read.answer, answer.strip()),
        ]
        for what, found, meant in parts:
            # Some tokenizers compose characters; then that is what a model reads too.
            ours, theirs = (
                normalize("NFC", json.dumps(one, ensure_ascii=False, sort_keys=True)) for one in (found, meant)
            )
            if ours != theirs:
                raise ValueError(
                    f"the format {self.family!r} cannot write an expert's turn whose {what} {shortened(theirs)} would "
                    f"be read as {shortened(ours)}"
                )

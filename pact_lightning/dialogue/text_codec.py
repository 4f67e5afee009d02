"""Codec between text and token ids that keeps control tokens out of text from outside."""

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from pact_lightning.utils.errors import shortened
from pact_lightning.utils.json_text import JsonTextError, check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCodec:
    """Codec that encodes plain text and control text apart, and maps tokens to bytes.

    ``plain`` text (user messages, tool schemas, tool responses, traces) never becomes a control token, whatever it
    contains: a copy of the tokenizer without added tokens encodes it. ``control`` text is this package's own.

    Args:
        tokenizer: A fast byte-level BPE tokenizer, as those of Qwen, Llama 3 and SmolLM2.

    Raises:
        ValueError: The tokenizer is not fast, or not byte-level: its tokens have no positions in the text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from transformers import PreTrainedTokenizerFast

        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError("the policy needs a fast tokenizer (tokenizer.json); convert it with transformers first")
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        decoder = state.get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        if not any(step.get("type") == "ByteLevel" for step in steps):
            raise ValueError("the tokenizer is not byte-level BPE; use a model of the Qwen, Llama 3 or GPT-2 family")
        self.tokenizer = tokenizer
        self._added: dict[int, str] = {entry["id"]: entry["content"] for entry in state["added_tokens"]}
        state["added_tokens"], state["post_processor"] = [], None
        self._bytes: dict[int, bytes] = {}
        self._plain = Tokenizer.from_str(json.dumps(state))
        self._control_ids: dict[str, int] = {content: index for index, content in self._added.items()}

    def plain(self, text: str) -> list[int]:
        """Encode text from outside; no control token can come out.

        Raises:
            ValueError: The text holds half of a surrogate pair, which has no UTF-8.
        """
        try:
            check_text(text)
        except JsonTextError as error:
            raise ValueError(f"the text {shortened(text)} {error} and has no tokens; fix it at its source") from error
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def control(self, text: str) -> list[int]:
        """Encode our own text: control tokens in it become control tokens if the tokenizer has them."""
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def has_control(self, text: str) -> bool:
        """Return whether the tokenizer has this text as one control token."""
        return text in self._control_ids

    def is_control(self, index: int) -> bool:
        """Return whether an id is a control token."""
        return index in self._added

    def control_id(self, text: str) -> int:
        """Return the id of a control token.

        Raises:
            ValueError: The tokenizer has no such token.
        """
        if text not in self._control_ids:
            raise ValueError(f"the tokenizer has no {text!r} token; its model does not use the ChatML format")
        return self._control_ids[text]

    def mixed(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Encode a text given as pieces ``(text, is ours)``.

        Neighbouring pieces are encoded together up to the next control token: the ids equal those of the whole text
        if the outside text holds no control token.
        """
        ids: list[int] = []
        pending = ""
        for text, ours in pieces:
            for part, control in self._split(text) if ours else [(text, False)]:
                if control:
                    ids += self.plain(pending)
                    ids.append(self._control_ids[part])
                    pending = ""
                else:
                    pending += part
        return ids + self.plain(pending)

    def _split(self, text: str) -> list[tuple[str, bool]]:
        """Cut our own text at its control tokens."""
        parts: list[tuple[str, bool]] = []
        rest = text
        while rest:
            found = [(rest.find(token), -len(token), token) for token in self._control_ids if token in rest]
            if not found:
                return [*parts, (rest, False)]
            start, _, token = min(found)
            if start:
                parts.append((rest[:start], False))
            parts.append((token, True))
            rest = rest[start + len(token) :]
        return parts

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of text that a token stands for; a token may end inside a character."""
        known = self._bytes.get(index)
        if known is None:
            added = self._added.get(index)
            if added is not None:
                known = added.encode()
            else:
                # A byte-level token's text has one character per byte. A model's head may have more rows than the
                # tokenizer has tokens; such an id has no text.
                token = self.tokenizer.convert_ids_to_tokens(index)
                known = b"" if token is None else bytes(_byte_of()[character] for character in str(token))
            self._bytes[index] = known
        return known

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; that of a character of several tokens stands at the last of them.

        Joined they are the text of all, but for bytes that are no UTF-8, which become U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.token_bytes(index), number == len(ids)) for number, index in enumerate(ids, 1)]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, control tokens included; for reading only."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@cache
def _byte_of() -> dict[str, int]:
    """Map the characters of byte-level tokens to the bytes that they stand for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters: Any = bytes_to_unicode  # untyped
    return {character: byte for byte, character in characters().items()}

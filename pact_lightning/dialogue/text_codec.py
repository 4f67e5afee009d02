"""Codec between text and token ids that keeps control tokens out of text from outside."""

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
        tokenizer: A fast BPE tokenizer, byte-level as those of Qwen, Llama 3 and SmolLM2, or with bytes to fall back on
            as Gemma's.

    Raises:
        ValueError: The tokenizer is not fast, or its tokens do not stand for the bytes of the text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from transformers import PreTrainedTokenizerFast

        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError("the policy needs a fast tokenizer (tokenizer.json); convert it with transformers first")
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        decoder = state.get("decoder") or {}
        steps = [step.get("type") for step in decoder.get("decoders", [decoder])]
        self._byte_level = "ByteLevel" in steps
        if not self._byte_level and not ("ByteFallback" in steps and _only_marks_spaces(state)):
            raise ValueError(
                "the tokenizer is neither byte-level BPE nor a SentencePiece model that leaves the text as it is; use "
                "a model of the Qwen, Llama 3, gpt-oss, GLM, DeepSeek or Gemma family"
            )
        self.tokenizer = tokenizer
        # Gemma lists thousands of words and spaces beside its control tokens; only in it are those all special.
        self._added: dict[int, str] = {
            entry["id"]: entry["content"] for entry in state["added_tokens"] if self._byte_level or entry["special"]
        }
        state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] not in self._added]
        state["post_processor"] = None
        self._bytes: dict[int, bytes] = {}
        self._plain = Tokenizer.from_str(json.dumps(state))
        self._control_ids: dict[str, int] = {content: index for index, content in self._added.items()}
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

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

    @property
    def controls(self) -> tuple[str, ...]:
        """The texts of all control tokens."""
        return tuple(self._control_ids)

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
        parts = (part for text, ours in pieces for part in (self.split(text) if ours else [text]))
        return self.joined(parts)

    def joined(self, parts: Iterable[str | int]) -> list[int]:
        """Encode plain texts and ids of control tokens; neighbouring texts are encoded together."""
        ids: list[int] = []
        pending = ""
        for part in parts:
            if isinstance(part, str):
                pending += part
            else:
                ids += self.plain(pending)
                ids.append(part)
                pending = ""
        return ids + self.plain(pending)

    def split(self, text: str) -> list[str | int]:
        """Cut our own text at its control tokens: plain texts, and the ids between them."""
        parts = self._controls.split(text) if self._control_ids else [text]
        return [self._control_ids[part] if n % 2 else part for n, part in enumerate(parts) if part]

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of text that a token stands for; a token may end inside a character."""
        known = self._bytes.get(index)
        if known is None:
            added = self._added.get(index)
            if added is not None:
                known = added.encode()
            else:
                # A model's head may have more rows than the tokenizer has tokens; such an id has no text.
                token = self.tokenizer.convert_ids_to_tokens(index)
                known = b"" if token is None else self._bytes_of(str(token))
            self._bytes[index] = known
        return known

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; that of a character of several tokens stands at the last of them.

        Joined they are the text of all, but for bytes that are no UTF-8, which become U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.token_bytes(index), number == len(ids)) for number, index in enumerate(ids, 1)]

    def _bytes_of(self, token: str) -> bytes:
        """Return the bytes of a token's text in the vocabulary; a byte-level one has one character per byte."""
        if self._byte_level:
            return bytes(_byte_of()[character] for character in token)
        byte = _BYTE.fullmatch(token)
        return token.replace(_SPACE, " ").encode() if byte is None else bytes([int(byte[1], 16)])

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, control tokens included; for reading only."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


_SPACE = "\u2581"  # as SentencePiece writes a space
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _only_marks_spaces(state: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece model's normaliser does no more than to mark spaces."""
    normalizer = state.get("normalizer") or {}
    return normalizer.get("type") == "Replace" and normalizer.get("content") == _SPACE


@cache
def _byte_of() -> dict[str, int]:
    """Map the characters of byte-level tokens to the bytes that they stand for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters: Any = bytes_to_unicode  # untyped
    return {character: byte for byte, character in characters().items()}

"""Dialogues as streams of characters and control tokens, in which the library ``renderers`` writes and reads.

The library is given a tokenizer with an id for every character (``CHARACTERS`` and its code point) beside the control
tokens of the policy's own. What it renders is then a text that says which control tokens are meant as such, and our
codec encodes it; what it reads of a sampled turn has places in characters, which are places of tokens.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pact_lightning.dialogue.text_codec import TextCodec

CHARACTERS = 1 << 24
"""Id of the first character; ids below are the policy's own tokens."""

# Two code points that are no characters, and that no text is meant to hold; one that does is written in escapes.
_BREAK, _ESCAPE = "\ufdd0", "\ufdd1"
_ESCAPED = {"e": _ESCAPE, "b": _BREAK}


class CharacterTokenizer:
    """Tokenizer of characters and control tokens, as ``renderers`` asks for one.

    Args:
        codec: Codec of the policy's tokenizer.
    """

    unk_token_id = None

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.name_or_path: str = codec.tokenizer.name_or_path
        self.chat_template = codec.tokenizer.chat_template
        self.eos_token_id = codec.tokenizer.eos_token_id

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return the control tokens of a text, and its characters between them."""
        parts = self.codec.split(text)
        return [index for part in parts for index in ([part] if isinstance(part, int) else of_text(part))]

    def decode(self, ids: Iterable[int], **_: Any) -> str:
        """Return a stream as text, control tokens included."""
        return "".join(self.text_of(index) for index in ids)

    def text_of(self, index: int) -> str:
        """Return the text of one entry of a stream."""
        if index >= CHARACTERS:
            return chr(index - CHARACTERS)
        return self.codec.token_bytes(index).decode(errors="surrogateescape")

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a control token; ``None`` for any other text."""
        return self.codec.control_id(token) if self.codec.has_control(token) else None


def of_text(text: str) -> list[int]:
    """Return the stream of a text without control tokens."""
    return [CHARACTERS + ord(character) for character in text]


def of_tokens(codec: TextCodec, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the stream of sampled tokens, and for each of its entries the token that it begins in.

    A byte that is no part of a character stands for itself (``surrogateescape``), so that nothing is lost.
    """
    stream: list[int] = []
    owners: list[int] = []
    run = bytearray()
    run_owners: list[int] = []

    def close() -> None:
        place = 0
        for character in run.decode(errors="surrogateescape"):
            stream.append(CHARACTERS + ord(character))
            owners.append(run_owners[place])
            place += len(character.encode(errors="surrogateescape"))
        run.clear()
        run_owners.clear()

    for number, index in enumerate(ids):
        if codec.is_control(index):
            close()
            stream.append(index)
            owners.append(number)
        else:
            said = codec.token_bytes(index)
            run.extend(said)
            run_owners.extend([number] * len(said))
    close()
    return stream, owners


def to_tokens(codec: TextCodec, stream: Iterable[int]) -> list[int]:
    """Encode a rendered stream: control tokens as they are, the text between them together."""
    return codec.joined(_parts(codec, stream))


def _parts(codec: TextCodec, stream: Iterable[int]) -> Iterator[str | int]:
    said = bytearray()
    for index in stream:
        if codec.is_control(index):
            yield _unbroken(said.decode())
            said.clear()
            yield index
        else:
            said += chr(index - CHARACTERS).encode() if index >= CHARACTERS else codec.token_bytes(index)
    yield _unbroken(said.decode())


class OutsideText:
    """Text from outside, in which no control token's text is whole.

    Behind the first character of every such text stands a code point that is no character; encoding takes it out.
    Pieces at a text's ends, which might join with what the library writes around it, are broken off too.

    Args:
        codec: Codec of the policy's tokenizer.
    """

    def __init__(self, codec: TextCodec) -> None:
        controls = codec.controls
        self._begins = re.compile(f"(?s)(?=(?:{'|'.join(map(re.escape, controls))}))(.)")
        self._heads = {token[:cut] for token in controls for cut in range(1, len(token))}
        self._tails = {token[cut:] for token in controls for cut in range(1, len(token))}
        self._longest = max(map(len, controls))

    def text(self, text: str) -> str:
        """Break the control tokens' texts in a text."""
        lengths = range(1, min(len(text), self._longest) + 1)
        joins = (any(text[:n] in self._tails for n in lengths), any(text[-n:] in self._heads for n in lengths))
        escaped = text.replace(_ESCAPE, f"{_ESCAPE}e").replace(_BREAK, f"{_ESCAPE}b")
        broken = self._begins.sub(rf"\1{_BREAK}", escaped)
        return _BREAK * joins[0] + broken + _BREAK * joins[1]

    def value(self, value: Any) -> Any:
        """Break the control tokens' texts in all texts of a JSON value, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(key): self.value(entry) for key, entry in value.items()}
        return [self.value(entry) for entry in value] if isinstance(value, list | tuple) else value


def _unbroken(text: str) -> str:
    return re.sub(f"{_ESCAPE}([eb])", lambda found: _ESCAPED[found[1]], text.replace(_BREAK, ""))

"""Vocabulary of gpt-oss for ``openai-harmony``, written from the model's own tokenizer: nothing is fetched."""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pact_lightning.dialogue.text_codec import TextCodec

_FOLDER = "TIKTOKEN_ENCODINGS_BASE"  # where openai-harmony looks for vocabularies
_FILE = "o200k_base.tiktoken"


@contextmanager
def vocabulary_of(codec: TextCodec, *, needed: bool) -> Iterator[None]:
    """Let openai-harmony find a tokenizer's vocabulary, unless the environment names a folder already.

    Args:
        codec: Codec of a tokenizer of gpt-oss.
        needed: Whether the format is gpt-oss's.
    """
    if not needed or _FOLDER in os.environ:
        yield
        return
    plain = (index for index in sorted(codec.tokenizer.get_vocab().values()) if not codec.is_control(index))
    with TemporaryDirectory() as folder:
        lines = (b"%s %d\n" % (base64.b64encode(codec.token_bytes(index)), index) for index in plain)
        (Path(folder) / _FILE).write_bytes(b"".join(lines))
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER]

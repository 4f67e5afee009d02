"""Answer of a call, as bytes in a pipe: what its process sends, and how strictly that is read.

Once a snippet runs, its process can write anything: the answer is read like a stranger's file. What comes before the
answer, the line of missing layers, is written before the process has read the call. Worker and parent both load this
file, the worker by its path: it uses the standard library only.
"""

import json
import struct
from collections.abc import Collection

TRUNCATED = " [truncated]"
_HEADER = struct.Struct(">BI")  # whether the call failed; the text's length in bytes
_MAX_LINE = 4096
_MAX_BYTES_PER_CHARACTER = 4


def layers_line(missing: Collection[str]) -> bytes:
    """Write the names of the layers that the system lacks."""
    return json.dumps(sorted(missing)).encode() + b"\n"


def pack(text: str, *, error: bool, max_chars: int) -> bytes:
    """Write an answer; a longer text is cut and marked."""
    # Half a surrogate pair is a str in Python, but no tokenizer takes it.
    text = text[: max_chars + 1].encode("utf-8", "backslashreplace").decode()
    if len(text) > max_chars:
        text = text[:max_chars] + TRUNCATED
    data = text.encode()
    return _HEADER.pack(error, len(data)) + data


def _most_bytes(max_chars: int) -> int:
    return _MAX_BYTES_PER_CHARACTER * (max_chars + len(TRUNCATED))


def is_whole(received: bytes, max_chars: int) -> bool:
    """Tell whether nothing that may still come could matter: the answer is complete, or it breaks its form.

    Args:
        received: The bytes so far.
        max_chars: The call's ``max_output_chars``.
    """
    line, end, rest = received.partition(b"\n")
    if not end:
        return len(line) > _MAX_LINE
    if len(rest) < _HEADER.size:
        return False
    length: int = _HEADER.unpack_from(rest)[1]
    return len(rest) >= _HEADER.size + min(length, _most_bytes(max_chars))


def missing_layers(received: bytes, known: Collection[str]) -> list[str]:
    """Read the line of missing layers.

    Raises:
        ValueError: The line is incomplete, or names what is no layer.
    """
    line, end, _ = received.partition(b"\n")
    if not end:
        raise ValueError("the call's process ended before it was closed in")
    names = json.loads(line)
    if not isinstance(names, list) or any(not isinstance(name, str) or name not in known for name in names):
        raise ValueError("the call's process names layers that do not exist")
    return names


def unpack(received: bytes, max_chars: int) -> tuple[str, bool] | None:
    """Read the answer.

    Args:
        received: All bytes that came.
        max_chars: The call's ``max_output_chars``.

    Returns:
        The text and whether the call failed, or ``None`` where the process ended before its answer.

    Raises:
        ValueError: The answer is none that this file writes.
    """
    rest = received.partition(b"\n")[2]
    if len(rest) < _HEADER.size:
        return None
    error, length = _HEADER.unpack_from(rest)
    if error not in (0, 1) or length > _most_bytes(max_chars):
        raise ValueError("the answer's header makes no sense")
    data = rest[_HEADER.size :]
    if len(data) < length:
        return None
    if len(data) > length:
        raise ValueError("the answer is longer than it says")
    text = data.decode()  # UnicodeDecodeError is a ValueError
    if len(text) > max_chars + len(TRUNCATED):
        raise ValueError("the answer is longer than its limit")
    return text, bool(error)

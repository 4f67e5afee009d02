"""JSON Lines files, plain or compressed, with a place for whatever is wrong with them."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from pact_lightning.tasks.checks import TaskFileError
from pact_lightning.tasks.json_text import JsonTextError, parse_json

MAX_LINE_MB = 64
"""Longer lines are refused unless a larger limit is asked for: a file without line ends would be read as one line."""
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One line that is not blank.

    Attributes:
        number: The line, counted from 1.
        value: Its JSON value; without meaning where there is an error.
        error: What is wrong with it.
    """

    number: int
    value: Any = None
    error: TaskFileError | None = None


def read_json_lines(path: Path, max_line_mb: int = MAX_LINE_MB) -> Iterator[tuple[int, Any]]:
    """Reads a ``.jsonl`` or ``.jsonl.gz`` file and stops at the first mistake.

    Args:
        path: The file: UTF-8, with or without a byte order mark.
        max_line_mb: Longest line in MiB.

    Yields:
        The line, counted from 1, and its JSON value; blank lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: A line is not UTF-8, too long, or not JSON (see
            :func:`pact_lightning.tasks.json_text.parse_json`), or the compressed file is damaged.
    """
    for line in scan_json_lines(path, max_line_mb):
        if line.error is not None:
            raise line.error
        yield line.number, line.value


def scan_json_lines(path: Path, max_line_mb: int = MAX_LINE_MB) -> Iterator[JsonLine]:
    """Reads a file as :func:`read_json_lines` does, but goes on after a mistake.

    Args:
        path: The file.
        max_line_mb: Longest line in MiB.

    Yields:
        Every line that is not blank. Where a compressed file is damaged, the last one holds that error.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: ``max_line_mb`` is below 1.
    """
    if max_line_mb < 1:
        raise ValueError(f"max_line_mb must be at least 1, got {max_line_mb}")
    number = 0
    with open_bytes(path) as file:
        while True:
            number += 1
            try:
                raw = file.readline((max_line_mb << 20) + 1)
                whole = _to_line_end(file, raw) if len(raw) > max_line_mb << 20 else len(raw)
            except _DAMAGED as error:
                yield JsonLine(number, error=TaskFileError(path, number, _damage(error)))
                return
            if not raw:
                return
            if whole > max_line_mb << 20:
                problem = f"is longer than {max_line_mb} MiB; raise max_line_mb, or look for missing line ends"
                yield JsonLine(number, error=TaskFileError(path, number, problem))
            elif raw.strip():
                yield _line(path, number, raw)


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file; one whose name ends in ``.gz`` is decompressed.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The name and the content disagree about the compression, or the file is UTF-16.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; paths count from the folder in which the command is started")
    with path.open("rb") as file:
        start = file.read(2)
    compressed = path.suffix == ".gz"
    if start and compressed != (start == _GZIP):
        problem = "is not compressed; name it without .gz" if compressed else "is compressed; let its name end in .gz"
        raise TaskFileError(path, 1, f"the file {problem}")
    if start in _UTF_16:
        raise TaskFileError(path, 1, "the file is UTF-16; save it as UTF-8")
    return cast(IO[bytes], gzip.open(path, "rb")) if compressed else path.open("rb")


def decode(path: Path, first_line: int, raw: bytes) -> str:
    """Bytes as text; a byte order mark at the file's start is no part of it.

    Args:
        path: The file, for the error.
        first_line: The line on which the bytes start, counted from 1.
        raw: One line or more.

    Raises:
        TaskFileError: They are not UTF-8; the error names the line and the byte within it, counted from 0.
    """
    skipped = len(_BOM) if first_line == 1 and raw.startswith(_BOM) else 0
    try:
        return raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        start = skipped + error.start
        line = first_line + raw.count(b"\n", 0, start)
        place = start - (raw.rfind(b"\n", 0, start) + 1)
        problem = f"is not UTF-8: byte {place} of it is 0x{raw[start]:02x}; save the file as UTF-8"
        raise TaskFileError(path, line, problem) from error


def read_text(path: Path, max_mb: int) -> str:
    """A whole file as text.

    Args:
        path: The file, compressed where its name ends in ``.gz``.
        max_mb: Its largest size in MiB, decompressed.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: It is not UTF-8, too long, or damaged.
    """
    with open_bytes(path) as file:
        try:
            raw = file.read((max_mb << 20) + 1)
        except _DAMAGED as error:
            raise TaskFileError(path, 1, _damage(error)) from error
    if len(raw) > max_mb << 20:
        raise TaskFileError(path, 1, f"the file is larger than {max_mb} MiB; raise max_file_mb")
    return decode(path, 1, raw)


def _line(path: Path, number: int, raw: bytes) -> JsonLine:
    try:
        return JsonLine(number, parse_json(decode(path, number, raw)))
    except TaskFileError as error:
        return JsonLine(number, error=error)
    except JsonTextError as error:
        return JsonLine(number, error=TaskFileError(path, number, str(error)))


def _to_line_end(file: IO[bytes], raw: bytes) -> int:
    """Skips the rest of an overlong line; its whole length, line end apart."""
    whole = len(raw)
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)
        whole += len(raw)
    return whole - 1 if raw.endswith(b"\n") else whole


def _damage(error: Exception) -> str:
    what = "ends too early" if isinstance(error, EOFError) else "is damaged"
    return f"cannot be read: the compressed file {what} ({error}); copy or pack it again"

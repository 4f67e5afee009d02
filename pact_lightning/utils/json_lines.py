"""JSON Lines files, plain or compressed, with a place for whatever is wrong with them.

An append-only file of JSON lines that survives being killed: what a line says was done need not be done again.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any

from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_text import JsonTextError, parse_json

MAX_LINE_MB = 64
"""Longer lines are refused unless a larger limit is asked for: a file without line ends would be read as one line."""
BOM = "\ufeff"
"""A byte order mark at the start of a file is no part of its text."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged compressed file raises."""
NOT_UTF_8, NOT_JSON, LINE_TOO_LONG, DAMAGED = "not UTF-8", "not JSON", "line too long", "damaged file"
"""Reasons of the errors of this module (:attr:`~pact_lightning.utils.errors.TaskFileError.reason`)."""


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
            :func:`pact_lightning.utils.json_text.parse_json`), or the compressed file is damaged.
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
            except DAMAGE as error:
                yield JsonLine(number, error=damage(path, number, error))
                return
            if not raw:
                return
            if whole > max_line_mb << 20:
                problem = f"is longer than {max_line_mb} MiB (max_line_mb); look for missing line ends"
                yield JsonLine(number, error=TaskFileError(path, number, problem, reason=LINE_TOO_LONG))
            elif raw.strip():
                yield _line(path, number, raw)


def open_bytes(path: Path) -> gzip.GzipFile | BufferedReader:
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
        raise TaskFileError(path, 1, f"the file {problem}", reason=DAMAGED)
    if start in _UTF_16:
        raise TaskFileError(path, 1, "the file is UTF-16; save it as UTF-8", reason=NOT_UTF_8)
    return gzip.open(path, "rb") if compressed else path.open("rb")


def not_utf_8(path: Path, line: int, place: int, byte: int) -> TaskFileError:
    """The error for a byte that is no UTF-8.

    Args:
        path: The file.
        line: The line on which it stands, counted from 1.
        place: Its place within the line, counted from 0.
        byte: The byte.
    """
    problem = f"is not UTF-8: byte {place} of it is 0x{byte:02x}; save the file as UTF-8"
    return TaskFileError(path, line, problem, reason=NOT_UTF_8)


def damage(path: Path, line: int, error: Exception) -> TaskFileError:
    """The error for a compressed file that breaks off at a line.

    Args:
        path: The file.
        line: The line, counted from 1.
        error: One of :data:`DAMAGE`.
    """
    what = "ends too early" if isinstance(error, EOFError) else "is damaged"
    problem = f"cannot be read: the compressed file {what} ({error}); copy or pack it again"
    return TaskFileError(path, line, problem, reason=DAMAGED)


def _line(path: Path, number: int, raw: bytes) -> JsonLine:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return JsonLine(number, error=not_utf_8(path, number, error.start, raw[error.start]))
    try:
        return JsonLine(number, parse_json(text.removeprefix(BOM) if number == 1 else text))
    except JsonTextError as error:
        return JsonLine(number, error=TaskFileError(path, number, str(error), reason=NOT_JSON))


def _to_line_end(file: gzip.GzipFile | BufferedReader, raw: bytes) -> int:
    """Skips the rest of an overlong line; its whole length, line end apart."""
    whole = len(raw)
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)
        whole += len(raw)
    return whole - 1 if raw.endswith(b"\n") else whole


class AppendLog:
    """Reads the records of earlier runs and appends new ones, each by a single write of a whole line.

    A process that is killed in the middle of a write leaves a last line without its line break. Opening the log
    removes such a line, so that whatever it said is done again.

    Args:
        path: The file, ``.jsonl``; made, with its folder, where there is none.

    Attributes:
        records: Records of earlier runs, in order.
        torn: Whether a torn last line was removed.

    Raises:
        TaskFileError: A line before the last is not JSON: the file was changed by hand, or is another file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.torn = _remove_torn_line(self.path)
        self.records: list[Any] = [value for _, value in read_json_lines(self.path)] if self.path.exists() else []
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; once this returns, it is on the disk.

        Raises:
            OSError: It could not be written as a whole, for want of space, say.
        """
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="replace")
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes could be written to {self.path}; is the disk full?")
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove_torn_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return False
        file.truncate(whole)
    return True

"""JSON files, plain or compressed, read with a place for whatever is wrong with them.

:func:`scan_json_lines` reads JSON Lines and :func:`scan_json_list` a file that holds one JSON list. Both continue after
a mistake. :class:`AppendLog` is a JSON Lines file that survives being killed: what it says was done need not be done
again.
"""

import errno
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
from pact_lightning.utils.json_text import JsonTextError, check_text, decode_json, parse_json

MAX_LINE_MB = 64
"""Longer lines are refused unless a larger limit is asked for: a file without line ends would be read as one line."""
MAX_FILE_MB = 512
"""Larger lists are refused unless a larger limit is asked for: their text is held in memory as a whole."""
_BOM = "\ufeff"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
"""Errors that reading a damaged compressed file raises."""
# Reasons of the errors, by which they are counted.
_NOT_UTF_8, _NOT_JSON, _DAMAGED = "not UTF-8", "not JSON", "damaged file"


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One line that is not blank, or one item of a list.

    Attributes:
        number: The line or item, counted from 1.
        value: Its JSON value; without meaning where there is an error.
        error: The mistake in it.
    """

    number: int
    value: Any = None
    error: TaskFileError | None = None


def read_json_lines(path: Path, max_line_mb: int = MAX_LINE_MB) -> Iterator[tuple[int, Any]]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file and stop at the first mistake.

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
    """Read a file as :func:`read_json_lines` does, but continue after a mistake.

    Args:
        path: The file.
        max_line_mb: Longest line in MiB.

    Yields:
        Every line that is not blank. Where a compressed file is damaged, the last one holds that error; so does the
        first line of a file of indented JSON.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The file's name and content disagree about the compression, or it is UTF-16.
        ValueError: ``max_line_mb`` is below 1.
    """
    if max_line_mb < 1:
        raise ValueError(f"max_line_mb must be at least 1, got {max_line_mb}")
    number = 0
    with _open_bytes(path) as file:
        while True:
            number += 1
            try:
                raw = file.readline((max_line_mb << 20) + 1)
                whole = _to_line_end(file, raw) if len(raw) > max_line_mb << 20 else len(raw)
                indented = number == 1 and _opening(raw) in ("{", "[") and bool(file.peek(1).strip())
            except _DAMAGE as error:
                yield JsonLine(number, error=_damage(path, number, error))
                return
            if not raw:
                return
            if whole > max_line_mb << 20:
                problem = f"is longer than {max_line_mb} MiB (max_line_mb); look for missing line breaks"
                yield JsonLine(number, error=TaskFileError(path, number, problem, reason="line too long"))
            elif indented:  # each further line would be told too
                cut = "." if _opening(raw) == "{" else "'.[]'"
                problem = (
                    "is where an indented JSON value begins, but JSON Lines has one whole object a line: "
                    f"`jq -c {cut} {path}` writes it so"
                )
                yield JsonLine(number, error=TaskFileError(path, number, problem, reason=_NOT_JSON))
                return
            elif raw.strip():
                yield _line(path, number, raw)


def scan_json_list(path: Path, max_file_mb: int = MAX_FILE_MB, *, lone_value: bool = False) -> Iterator[JsonLine]:
    """Read a ``.json`` or ``.json.gz`` file that holds one list; continue after an item that cannot be used.

    Args:
        path: The file: UTF-8, with or without a byte order mark.
        max_file_mb: Its largest size in MiB, decompressed.
        lone_value: Take a file that holds any other value as a list of this one value.

    Yields:
        The items, in order.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The file as a whole is too large, damaged, not UTF-8, no JSON or no list.
        ValueError: ``max_file_mb`` is below 1.
    """
    if max_file_mb < 1:
        raise ValueError(f"max_file_mb must be at least 1, got {max_file_mb}")
    items = _decoded_file(path, _content(path, max_file_mb))
    if not isinstance(items, list):
        if not lone_value:
            found = type(items).__name__
            raise TaskFileError(path, 1, f"expected a JSON list of rows, found {found}", reason=_NOT_JSON)
        items = [items]
    for number, item in enumerate(items, 1):
        try:
            check_text(item)
        except JsonTextError as error:
            yield JsonLine(number, error=TaskFileError(path, number, str(error), unit="item", reason=_NOT_JSON))
        else:
            yield JsonLine(number, item)


def _content(path: Path, max_mb: int) -> bytes:
    raw = bytearray()
    with _open_bytes(path) as file:
        try:
            while piece := file.read1(1 << 20):
                raw += piece
                if len(raw) > max_mb << 20:
                    problem = f"the file is larger than {max_mb} MiB (max_file_mb); JSON Lines files can have any size"
                    raise TaskFileError(path, 1, problem, reason="file too large")
        except _DAMAGE as error:
            raise _damage(path, raw.count(b"\n") + 1, error) from error
    return bytes(raw)


def _decoded_file(path: Path, raw: bytes) -> Any:
    try:
        return decode_json(raw.decode("utf-8").removeprefix(_BOM))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        place = error.start - (raw.rfind(b"\n", 0, error.start) + 1)
        raise _not_utf_8(path, line, place, raw[error.start]) from error
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON: {error.msg.removesuffix(' at')} at character {error.colno - 1}"
        if error.msg == "Extra data":
            problem = "something follows the value; if this is JSON Lines, rename it to end in .jsonl"
        raise TaskFileError(path, error.lineno, problem, reason=_NOT_JSON) from error
    except JsonTextError as error:
        raise TaskFileError(path, 1, f"the file {error}", reason=_NOT_JSON) from error


def _open_bytes(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file; one whose name ends in ``.gz`` is decompressed.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The name and the content disagree about the compression, or the file is UTF-16.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; paths are relative to the folder where you run the command")
    with path.open("rb") as file:
        start = file.read(2)
    compressed = path.suffix == ".gz"
    if start and compressed != (start == _GZIP):
        problem = "is not compressed; rename it without .gz" if compressed else "is compressed; rename it to end in .gz"
        raise TaskFileError(path, 1, f"the file {problem}", reason=_DAMAGED)
    if start in _UTF_16:
        raise TaskFileError(path, 1, "the file is UTF-16; save it as UTF-8", reason=_NOT_UTF_8)
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _not_utf_8(path: Path, line: int, place: int, byte: int) -> TaskFileError:
    problem = f"is not UTF-8: byte {place} of it is 0x{byte:02x}; save the file as UTF-8"
    return TaskFileError(path, line, problem, reason=_NOT_UTF_8)


def _damage(path: Path, line: int, error: Exception) -> TaskFileError:
    state = "ends too early" if isinstance(error, EOFError) else "is damaged"
    problem = f"cannot be read: the compressed file {state} ({error}); copy or compress it again"
    return TaskFileError(path, line, problem, reason=_DAMAGED)


def _opening(raw: bytes) -> str:
    """Return a short line without its ends, which may be all that an indented JSON value has on its first line."""
    return raw.decode("utf-8", errors="replace").removeprefix(_BOM).strip() if len(raw) <= 8 else ""


def _line(path: Path, number: int, raw: bytes) -> JsonLine:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
        return JsonLine(number, parse_json(text.removeprefix(_BOM) if number == 1 else text))
    except UnicodeDecodeError as error:
        return JsonLine(number, error=_not_utf_8(path, number, error.start, raw[error.start]))
    except JsonTextError as error:
        return JsonLine(number, error=TaskFileError(path, number, str(error), reason=_NOT_JSON))


def _to_line_end(file: gzip.GzipFile | BufferedReader, raw: bytes) -> int:
    """Skip the rest of an overlong line and return its whole length without the line end."""
    whole = len(raw)
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)
        whole += len(raw)
    return whole - 1 if raw.endswith(b"\n") else whole


class AppendLog:
    """A JSON Lines file to which each record is appended by a single write of a whole line.

    A process that is killed in the middle of a write leaves a last line without its line break. Opening the log
    removes such a line, so whatever it said is done again.

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
        """Write one record; once this returns, it is on the disk.

        Raises:
            OSError: It could not be written as a whole, for want of space, say.
        """
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="replace")
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(
                errno.ENOSPC, f"only {written} of {len(line)} bytes could be written to {self.path}; is the disk full?"
            )
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
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

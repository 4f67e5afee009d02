"""Reads files of records one by one; a record that cannot be read becomes a located problem and the rest is read on."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pact_lightning.traces.importers.json_text import load_json

MAX_LINE_BYTES = 10_000_000
"""A longer line is refused unread: no conversation that fits a context is as long, and a file without line breaks is
mostly no JSON Lines file [D]."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
"""Files that are read: JSON Lines, or one JSON array of records."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        path: The file.
        number: Its line, or its place in a JSON array, counted from 1.
        unit: ``line`` or ``record``.
    """

    path: Path
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record is not used.

    Attributes:
        place: The record.
        reason: A short name by which problems are counted.
        text: What is wrong, in one clause.
        field: Where in the record, such as ``messages[2].tool_calls[0]``; empty for the record as a whole.
    """

    place: Place
    reason: str
    text: str
    field: str = ""

    def __str__(self) -> str:
        field = f"field `{self.field}`: " if self.field else ""
        return f"{self.place}: {field}{self.text}"


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON value and where it stands."""

    place: Place
    value: Any


def record_files(source: Path) -> list[Path]:
    """The files to read: the one given, or those of a folder, by name.

    Args:
        source: A file, or a folder whose files with one of :data:`SUFFIXES` are meant; not those of its subfolders.

    Raises:
        FileNotFoundError: There is no such file or folder, or the folder has no such file.
        ValueError: The file has another suffix.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.is_file() and path.name.endswith(SUFFIXES))
        if not files:
            raise FileNotFoundError(f"the folder {source} holds no file that ends in {', '.join(SUFFIXES)}")
        return files
    if not source.is_file():
        raise FileNotFoundError(
            f"there is no file {source}; paths count from the folder in which the command is started"
        )
    if not source.name.endswith(SUFFIXES):
        raise ValueError(f"{source}: cannot tell how to read it; its name must end in {', '.join(SUFFIXES)}")
    return [source]


def read_records(path: Path) -> Iterator[Record | Problem]:
    """Reads the records of a file, one at a time; blank lines are skipped.

    Args:
        path: A file that ends in one of :data:`SUFFIXES`.

    Yields:
        In the file's order, each record or what is wrong with it: invalid UTF-8, no JSON, a line over
        :data:`MAX_LINE_BYTES`. Damage that ends the file early (a torn ``.gz``) is one problem at the place it was met.
    """
    if path.name.endswith((".json", ".json.gz")):
        yield from _array(path)
        return
    number = 0
    try:
        with _opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                place = Place(path, number)
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(file, line)
                    problem = f"is longer than {MAX_LINE_BYTES:,} bytes; is this one record a line?"
                    yield Problem(place, "line too long", problem)
                elif line.strip():
                    yield _record(place, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Problem(Place(path, number + 1), "damaged file", f"the compressed file is damaged from here on: {error}")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _record(place: Place, line: bytes) -> Record | Problem:
    line = line.rstrip(b"\r\n")
    try:
        return Record(place, load_json(line.decode("utf-8-sig" if place.number == 1 else "utf-8")))
    except UnicodeDecodeError as error:
        return Problem(place, "not UTF-8", f"is not UTF-8: byte {error.start} of the line is {line[error.start]:#04x}")
    except ValueError as error:
        return Problem(place, "not JSON", str(error))


def _array(path: Path) -> Iterator[Record | Problem]:
    whole = Place(path, 1)
    try:
        with _opened(path) as file:
            read = _record(whole, file.read())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        read = Problem(whole, "damaged file", f"the compressed file is damaged: {error}")
    if isinstance(read, Problem):
        yield read
    elif isinstance(read.value, list):
        yield from (Record(Place(path, number, "record"), value) for number, value in enumerate(read.value, start=1))
    else:
        yield Record(Place(path, 1, "record"), read.value)

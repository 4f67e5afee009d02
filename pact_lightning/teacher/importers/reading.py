"""Records of files, one at a time.

A record that cannot be read becomes a :class:`Problem` with its place, and reading goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import JsonLine, scan_json_lines, scan_json_list

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
"""Files that are read: JSON Lines, or one JSON array of records."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a record.

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
    """Problem that excludes a record.

    Attributes:
        place: The record's place.
        reason: A short name by which problems are counted.
        text: The mistake, in one clause.
        field: The field, such as ``messages[2].tool_calls[0]``; empty for the record as a whole.
        id: The record's id, or the one it would get; may be empty.
    """

    place: Place
    reason: str
    text: str
    field: str = ""
    id: str = ""

    def __str__(self) -> str:
        field = f"field `{self.field}`: " if self.field else ""
        return f"{self.place}: {field}{self.text}"


@dataclass(frozen=True, slots=True)
class Record:
    """JSON value with its place."""

    place: Place
    value: Any


def record_files(source: Path) -> list[Path]:
    """List the files to read: the one given, or those of a folder, by name.

    Args:
        source: A file, or a folder of files with one of :data:`SUFFIXES`; subfolders are not read.

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
            f"there is no file {source}; paths are relative to the folder where you run the command"
        )
    if source.name.endswith(".parquet"):
        raise ValueError(
            f"{source}: is a Parquet file; write it as JSON Lines first, with `to_json` of the data set or data frame"
        )
    if not source.name.endswith(SUFFIXES):
        raise ValueError(f"{source}: unknown file type; its name must end in {', '.join(SUFFIXES)}")
    return [source]


def read_records(path: Path) -> Iterator[Record | Problem]:
    """Read the records of a file, one at a time; blank lines are skipped.

    Lines may be as long as :data:`~pact_lightning.utils.json_lines.MAX_LINE_MB`, arrays as large as
    :data:`~pact_lightning.utils.json_lines.MAX_FILE_MB`.

    Args:
        path: A file that ends in one of :data:`SUFFIXES`. One that ends in ``.json`` and holds a single object is one
            record.

    Yields:
        In the file's order, each record or its problem: invalid UTF-8, no JSON, a line that is too long.
        A torn ``.gz`` of lines ends early with one problem. A file with one array that is torn or of broken syntax is
        one problem as a whole.

    Raises:
        FileNotFoundError: There is no such file.
    """
    try:
        if path.name.endswith((".json", ".json.gz")):
            for item in scan_json_list(path, lone_value=True):
                yield _entry(Place(path, item.number, "record"), item)
        else:
            for line in scan_json_lines(path):
                yield _entry(Place(path, line.number), line)
    except TaskFileError as error:  # the file as a whole
        yield Problem(Place(path, error.line), error.reason, error.problem)


def _entry(place: Place, read: JsonLine) -> Record | Problem:
    if read.error is None:
        return Record(place, read.value)
    return Problem(place, read.error.reason, read.error.problem)

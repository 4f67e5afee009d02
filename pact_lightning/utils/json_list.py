"""A file that holds one JSON list, item by item, each with the line on which it starts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import BOM, DAMAGE, NOT_JSON, damage, not_utf_8, open_bytes
from pact_lightning.utils.json_text import JsonTextError, parse_json_at, refused_end

MAX_FILE_MB = 512
"""Larger files are refused unless a larger limit is asked for: the text is held in memory as a whole."""
_NO_UTF_8 = re.compile("[\udc80-\udcff]")  # as the decoder's ``surrogateescape`` writes such bytes


@dataclass(frozen=True, slots=True)
class JsonItem:
    """One item of the list.

    Attributes:
        index: Its place in the list, counted from 0.
        line: The line on which it starts, counted from 1.
        value: Its JSON value; without meaning where there is an error.
        error: What is wrong with it.
    """

    index: int
    line: int
    value: Any = None
    error: TaskFileError | None = None


def read_json_list(path: Path, max_file_mb: int = MAX_FILE_MB) -> Iterator[JsonItem]:
    """Reads a ``.json`` or ``.json.gz`` file and stops at the first mistake.

    Args:
        path: The file: UTF-8, one JSON list.
        max_file_mb: Its largest size in MiB, decompressed.

    Yields:
        The items, in order.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The file is not such a list; the error names the line of the item.
        ValueError: ``max_file_mb`` is below 1.
    """
    for item in scan_json_list(path, max_file_mb):
        if item.error is not None:
            raise item.error
        yield item


def scan_json_list(path: Path, max_file_mb: int = MAX_FILE_MB, *, lone_value: bool = False) -> Iterator[JsonItem]:
    """Reads a file as :func:`read_json_list` does, but goes on after an item that cannot be used.

    Args:
        path: The file.
        max_file_mb: Its largest size in MiB, decompressed.
        lone_value: Whether a file that holds a value of another kind counts as a list of this one value.

    Yields:
        The items, in order. Where the list's syntax is broken, or the compressed file is damaged, nobody can say where
        the next item starts: the last one holds that error.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The file is too large, or its name and content disagree about the compression.
        ValueError: ``max_file_mb`` is below 1.
    """
    if max_file_mb < 1:
        raise ValueError(f"max_file_mb must be at least 1, got {max_file_mb}")
    text, broken = _read(path, max_file_mb)
    cursor = _Cursor(path, text)
    index = 0
    try:
        for item in cursor.lone_value() if lone_value and not cursor.sees("[") else cursor.items():
            if broken is not None and cursor.at == len(text):
                break  # it may go on where the file breaks off
            yield item
            index = item.index + 1
    except TaskFileError as error:
        if broken is None:
            yield JsonItem(index, error.line, error=cursor.not_utf_8(len(text)) or error)
    if broken is not None:
        yield JsonItem(index, cursor.line, error=damage(path, cursor.line, broken))


def _read(path: Path, max_mb: int) -> tuple[str, Exception | None]:
    """The text, and what kept the rest of a damaged file from being read."""
    raw = bytearray()
    broken = None
    with open_bytes(path) as file:
        try:
            while piece := file.read1(1 << 20):
                raw += piece
                if len(raw) > max_mb << 20:
                    problem = f"the file is larger than {max_mb} MiB (max_file_mb); JSON Lines may be of any size"
                    raise TaskFileError(path, 1, problem, reason="file too large")
        except DAMAGE as error:
            broken = error
    return raw.decode("utf-8", "surrogateescape"), broken


class _Cursor:
    """A place in the text, and the line it is on."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self.at = len(BOM) if text.startswith(BOM) else 0
        self.line = 1

    def items(self) -> Iterator[JsonItem]:
        """The items of the list that stands here.

        Raises:
            TaskFileError: It is none.
        """
        self.expect("[", "a JSON list of rows")
        index = 0
        while not self.take("]"):
            if index:
                self.expect(",", "`,` or `]` after a row")
            self.skip_space()
            yield self.value(index, f"[{index}]")
            index += 1
        self.expect_end("something follows the list")

    def lone_value(self) -> Iterator[JsonItem]:
        """The one value that stands here.

        Raises:
            TaskFileError: It is none.
        """
        item = self.value(0, "")
        self.expect_end("something follows the value; if this is JSON Lines, let the name end in .jsonl")
        yield item

    def value(self, index: int, field: str) -> JsonItem:
        """The value that stands here; passes over one that cannot be used.

        Raises:
            TaskFileError: Its syntax is broken.
        """
        value = problem = None
        try:
            value, end = parse_json_at(self.text, self.at)
        except JsonTextError as error:
            problem = TaskFileError(self.path, self.line, str(error), field, reason=NOT_JSON)
            refused = refused_end(self.text, self.at)
            if refused is None:
                raise problem from error
            end = refused
            problem = self.not_utf_8(end) or problem
        item = JsonItem(index, self.line, value, problem)
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return item

    def not_utf_8(self, end: int) -> TaskFileError | None:
        """The first byte from here to ``end`` that is not UTF-8."""
        found = _NO_UTF_8.search(self.text, self.at, end)
        if found is None:
            return None
        start = self.text.rfind("\n", 0, found.start()) + 1
        place = len(self.text[start : found.start()].encode("utf-8", "surrogateescape"))
        line = self.line + self.text.count("\n", self.at, found.start())
        return not_utf_8(self.path, line, place, ord(found.group()) & 0xFF)

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.line += self.text[self.at] == "\n"
            self.at += 1

    def sees(self, character: str) -> bool:
        self.skip_space()
        return self.text.startswith(character, self.at)

    def take(self, character: str) -> bool:
        found = self.sees(character)
        self.at += found
        return found

    def expect(self, character: str, wanted: str) -> None:
        if not self.take(character):
            got = repr(self.text[self.at]) if self.at < len(self.text) else "the end of the file"
            raise TaskFileError(self.path, self.line, f"expected {wanted}, found {got}", reason=NOT_JSON)

    def expect_end(self, problem: str) -> None:
        self.skip_space()
        if self.at < len(self.text):
            raise TaskFileError(self.path, self.line, problem, reason=NOT_JSON)

"""A file that holds one JSON list, item by item, each with the line on which it starts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_lightning.tasks.checks import TaskFileError
from pact_lightning.tasks.json_lines import read_text
from pact_lightning.tasks.json_text import JsonTextError, parse_json_at

MAX_FILE_MB = 512
"""Larger files are refused unless a larger limit is asked for: the text is held in memory as a whole."""


@dataclass(frozen=True, slots=True)
class JsonItem:
    """One item of the list.

    Attributes:
        index: Its place in the list, counted from 0.
        line: The line on which it starts, counted from 1.
        value: Its JSON value.
    """

    index: int
    line: int
    value: Any


def read_json_list(path: Path, max_file_mb: int = MAX_FILE_MB) -> Iterator[JsonItem]:
    """Reads a ``.json`` or ``.json.gz`` file.

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
    if max_file_mb < 1:
        raise ValueError(f"max_file_mb must be at least 1, got {max_file_mb}")
    text = read_text(path, max_file_mb)
    cursor = _Cursor(path, text)
    cursor.expect("[", "a JSON list of rows")
    index = 0
    while not cursor.take("]"):
        if index:
            cursor.expect(",", "`,` or `]` after a row")
        cursor.skip_space()
        yield JsonItem(index, cursor.line, cursor.value(f"[{index}]"))
        index += 1
    cursor.skip_space()
    if cursor.at < len(text):
        raise TaskFileError(path, cursor.line, "something follows the list")


class _Cursor:
    """A place in the text, and the line it is on."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self.at = 0
        self.line = 1

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.line += self.text[self.at] == "\n"
            self.at += 1

    def take(self, character: str) -> bool:
        self.skip_space()
        found = self.text.startswith(character, self.at)
        self.at += found
        return found

    def expect(self, character: str, wanted: str) -> None:
        if not self.take(character):
            got = repr(self.text[self.at]) if self.at < len(self.text) else "the end of the file"
            raise TaskFileError(self.path, self.line, f"expected {wanted}, found {got}")

    def value(self, field: str) -> Any:
        try:
            value, end = parse_json_at(self.text, self.at)
        except JsonTextError as error:
            raise TaskFileError(self.path, self.line, str(error), field) from error
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return value

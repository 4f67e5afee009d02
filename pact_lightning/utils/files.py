"""Files that are written whole or not at all: a run that is interrupted or fails leaves the old file in place."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for writing; it gets its name once the context ends without an error.

    Until then it is called ``<name>.partial``. A path that is no regular file, such as ``/dev/stdout``, is written
    directly.

    Args:
        path: The file, compressed if its name ends in ``.gz``. A missing folder is made.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        compressed = path.suffix == ".gz"
        with gzip.open(partial, "wt", encoding="utf-8") if compressed else partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object, indented, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line, whole or not at all; a generator of them is read as they are written."""
    with whole_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

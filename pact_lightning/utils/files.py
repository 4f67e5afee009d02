"""Files that are written whole or not at all: a run that is interrupted or fails leaves what was there before."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Opens a file for UTF-8 text; under its name it is only seen once the context is left without an error.

    Until then it stands beside it, as ``<name>.partial``. What is no regular file, such as ``/dev/stdout``, is written
    directly.

    Args:
        path: The file, compressed where its name ends in ``.gz``. Its folder is made where there is none.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _opened(partial, compressed=path.suffix == ".gz") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes one JSON object, indented, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON objects, one a line, whole or not at all; they may be made while they are written."""
    with whole_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _opened(path: Path, *, compressed: bool) -> IO[str]:
    return gzip.open(path, "wt", encoding="utf-8") if compressed else path.open("w", encoding="utf-8")

"""An append-only file of JSON lines that survives being killed: what a line says was done need not be done again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pact_lightning.tasks.jsonl import read_json_lines


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

"""What code a task file names, from its JSON alone: nothing is imported, made or run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pact_lightning.tasks.json_lines import scan_json_lines

_NAMES_CODE = ("class_path", "functions", "server", "command", "args", "url")
"""Arguments by which the environments of this package name further code: TRL's class, functions, an MCP server."""


def environment_classes(path: Path) -> tuple[Counter[str], int]:
    """Counts the environments of a file of the package's own format.

    The lines are read by the parser that loads them, so that escapes and repeated keys hide nothing.

    Args:
        path: The task file.

    Returns:
        Tasks per ``environment.class_path`` and what its arguments name; and the number of lines that name none, which
        can be no tasks.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found: Counter[str] = Counter()
    unreadable = 0
    for line in scan_json_lines(path):
        named = _named(line.value) if line.error is None else None
        if named is None:
            unreadable += 1
        else:
            found[named] += 1
    return found, unreadable


def _named(record: Any) -> str | None:
    environment = record.get("environment") if isinstance(record, dict) else None
    if not isinstance(environment, dict) or not isinstance(environment.get("class_path"), str):
        return None
    arguments = environment.get("init_args")
    further = (
        {name: arguments[name] for name in _NAMES_CODE if name in arguments} if isinstance(arguments, dict) else {}
    )
    # As JSON with its escapes, so that no text can write over what a terminal shows.
    class_path = json.dumps(environment["class_path"])[1:-1]
    return " ".join([class_path, *(f"{name}={json.dumps(value)}" for name, value in further.items())])

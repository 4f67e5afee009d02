"""Rows of other formats, told from tasks of the package's own by their fields."""

from pathlib import Path
from typing import Any

from pact_lightning.tasks.checks import TaskFileError
from pact_lightning.tasks.json_lines import scan_json_lines
from pact_lightning.tasks.json_list import scan_json_list

_LISTS = (".json", ".json.gz")


def other_format(record: Any) -> tuple[str, str] | None:
    """The format that a record is of by its fields, where it is of another one than the package's own.

    Args:
        record: A JSON value.

    Returns:
        What ``--format`` calls the format, and the field that tells it; ``None`` for any other record.

    >>> other_format({"codes": "{}", "answer": "1"}), other_format({"id": "a", "environment": {}})
    (('ftrl', 'codes'), None)
    """
    if not isinstance(record, dict) or "environment" in record:
        return None
    if "sub_task" in record:
        return "toolhop", "sub_task"
    field = next((name for name in ("codes", "unsolved_set") if name in record), None)
    if field is None:
        return None
    return ("matchtir" if "ground_truth" in record else "ftrl"), field


def check_own_format(path: Path) -> None:
    """Refuses a file whose first record is of another format than the package's own.

    What cannot be read is let be: whoever reads the whole file says what is wrong with it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: The first record is a row of FTRL, MatchTIR or ToolHop; the error says which ``--format`` it is.
    """
    try:
        line, record = _first(path)
    except TaskFileError:
        return
    found = other_format(record)
    if found is not None:
        name, field = found
        raise TaskFileError(path, line, f"is a field of another format and of no task; give --format {name}", field)


def _first(path: Path) -> tuple[int, Any]:
    """The first record and its line; ``None`` for one that cannot be read."""
    if path.name.endswith(_LISTS):
        item = next(scan_json_list(path, lone_value=True), None)
        return (1, None) if item is None else (item.line, item.value)
    line = next(scan_json_lines(path), None)
    return (1, None) if line is None else (line.number, line.value)

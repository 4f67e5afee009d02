"""All mistakes of a task file, not only the first: each wrong piece is told, put aside, and the rest is read again."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pact_lightning.tasks.jsonl import Scanned
from pact_lightning.tasks.record import task_from_json
from pact_lightning.utils.errors import TaskFieldError, TaskFileError
from pact_lightning.utils.json_lines import MAX_LINE_MB, scan_json_lines

MOST = 100
"""Mistakes told of one record; a record that has more is no attempt at a task."""
_INDEX = re.compile(r"\[(\d+)\]")
_NAMES_TOOL = "names the tool "
_SPARE = "any_tool"
_SPARE_MESSAGE = {"role": "user", "content": "?"}
_WHOLE: dict[str, Any] = {
    "id": "?",
    "messages": [_SPARE_MESSAGE],
    "tools": [],
    "environment": {"class_path": "any.Class"},
    "follow_ups": [],
    "reference": None,
    "trace": None,
    "kind": "",
    "metadata": {},
}
"""A sound value of every field, to stand for a wrong one while the others are read."""


def scan_mistakes(path: Path, max_line_mb: int = MAX_LINE_MB) -> Iterator[Scanned]:
    """Reads a file of the package's own format.

    Args:
        path: The file.
        max_line_mb: Longest line in MiB.

    Yields:
        For a well-formed line its task; for any other one entry per mistake.

    Raises:
        FileNotFoundError: There is no such file.
    """
    first_lines: dict[str, int] = {}
    for line in scan_json_lines(path, max_line_mb):
        if line.error is not None:
            yield Scanned(line.number, error=line.error)
            continue
        found = record_mistakes(line.value)
        given_id = line.value.get("id") if isinstance(line.value, dict) else None
        if isinstance(given_id, str) and given_id:
            first = first_lines.setdefault(given_id, line.number)
            if first != line.number:
                found.insert(0, TaskFieldError("id", f"{given_id!r} is already the id of line {first}"))
        if not found:
            yield Scanned(line.number, task_from_json(line.value))
        for error in found:
            yield Scanned(line.number, error=TaskFileError(path, line.number, error.problem, error.field))


def record_mistakes(record: Any) -> list[TaskFieldError]:
    """What is wrong with a record of the package's own format.

    Of a list's element (a message, a tool, a call, a turn of the trace) the first mistake is told. Where tools are
    wrong, calls of unknown tools are not told: they may be calls of those.

    Args:
        record: The record; it is left as it is.

    Returns:
        The mistakes, in the order in which reading meets them; empty for a task.

    >>> [error.field for error in record_mistakes({"id": 1, "messages": [], "tools": [], "environment": {}})]
    ['environment.class_path', 'id', 'messages']
    """
    rest = copy.deepcopy(record)
    found: list[TaskFieldError] = []
    last = ("", "")
    while len(found) < MOST:
        try:
            task_from_json(rest)
            break
        except TaskFieldError as error:
            if (error.field, error.problem) == last:
                break  # it could not be put aside
            last = (error.field, error.problem)
            if not _follows(error, found, record):
                found.append(error)
            if not isinstance(rest, dict):
                break
            _put_aside(rest, error)
    return found


def _follows(error: TaskFieldError, found: list[TaskFieldError], record: Any) -> bool:
    """Whether it may be no mistake of its own: calls of tools, where tools or what gives them are wrong already."""
    fields = [earlier.field for earlier in found]
    own_tools = isinstance(record, dict) and "tools" in record
    no_environment = not own_tools and any(field.startswith("environment") for field in fields)
    if error.problem.startswith(_NAMES_TOOL):
        return no_environment or any(re.search(r"(^|\.)tools", field) for field in fields)
    return no_environment and error.field == "tools"


def _put_aside(record: dict[str, Any], error: TaskFieldError) -> None:
    """Replaces what is wrong by something sound; where that is not possible the record stays as it is."""
    if error.problem.startswith(_NAMES_TOOL):
        _offer_first_unknown(record)
    elif error.problem.startswith("is not a known field"):
        _remove(record, error.field)
    else:
        top = re.split(r"[.\[]", error.field, maxsplit=1)[0]
        if not (top in _WHOLE and _replace_element(record, top, error)):
            record[top] = copy.deepcopy(_WHOLE.get(top))


def _replace_element(record: dict[str, Any], top: str, error: TaskFieldError) -> bool:
    """Replaces the element of a list, or the one member of an object, that the error is about."""
    indices = [int(index) for index in _INDEX.findall(error.field)]
    later_tool = re.match(r"follow_ups\[\d+\]\.tools\[", error.field)
    if later_tool:
        record[top][indices[0]]["tools"][indices[1]] = _new_tool(record)
        return True
    if top in ("messages", "tools", "follow_ups") and indices:
        spare = {"messages": _SPARE_MESSAGE, "follow_ups": {"content": "?"}}.get(top)
        record[top][indices[0]] = dict(spare) if spare else _new_tool(record)
        return True
    member = error.field.split(".")[1].partition("[")[0] if "." in error.field else ""
    if top == "environment" and member in ("class_path", "init_args"):
        record[top][member] = {"class_path": "any.Class", "init_args": {}}[member]
        return True
    if top in ("reference", "trace") and isinstance(record.get(top), dict) and member:
        turn = re.match(r"trace turn (\d+) ", error.problem)
        return _replace_in(record, record[top], member, [int(turn[1])] if turn else indices)
    return False


def _replace_in(record: dict[str, Any], holder: dict[str, Any], member: str, indices: list[int]) -> bool:
    if not indices:
        holder.pop(member, None)
        if member == "turns":
            record["trace"] = None
        return True
    call = {"name": _spare_tool(record), "arguments": {}}
    spare = {
        "calls": call,
        "sub_answers": {"tool": call["name"], "answer": "?"},
        "turns": {"calls": [call], "responses": [""]},
    }.get(member)
    if spare is None:
        return False
    holder[member][indices[0]] = spare
    return True


def _remove(record: dict[str, Any], field: str) -> None:
    """Removes an unknown field; its name may hold anything, so it is looked for and not taken apart."""
    places: list[tuple[str, Any]] = [("", record)]
    while places:
        where, place = places.pop()
        inner: Iterator[tuple[Any, str]] = iter(())
        if isinstance(place, dict):
            inner = ((key, f"{where}.{key}" if where else str(key)) for key in list(place))
        elif isinstance(place, list):
            inner = ((index, f"{where}[{index}]") for index in range(len(place)))
        for key, name in inner:
            if name == field and isinstance(place, dict):
                del place[key]
                return
            if field.startswith(name):
                places.append((name, place[key]))


def _offer_first_unknown(record: dict[str, Any]) -> None:
    """Adds the first tool that is called and not offered, as the checks meet them."""
    reference, trace = record.get("reference") or {}, record.get("trace") or {}
    names = [call["name"] for call in reference.get("calls", [])]
    names += [sub_answer["tool"] for sub_answer in reference.get("sub_answers", [])]
    names += [call["name"] for turn in trace.get("turns", []) for call in turn.get("calls", [])]
    offered = _offered(record)
    unknown = next((name for name in names if name not in offered), None)
    if unknown is not None:
        _offer(record, unknown)


def _offered(record: dict[str, Any]) -> set[Any]:
    follow_ups = record.get("follow_ups")
    turns = [turn for turn in follow_ups if isinstance(turn, dict)] if isinstance(follow_ups, list) else []
    lists = [record.get("tools"), *(turn.get("tools") for turn in turns)]
    tools = [tool for tools in lists if isinstance(tools, list) for tool in tools if isinstance(tool, dict)]
    functions = [function for tool in tools if isinstance(function := tool.get("function"), dict)]
    return {name for function in functions if isinstance(name := function.get("name"), str)}


def _spare_tool(record: dict[str, Any]) -> str:
    if _SPARE not in _offered(record):
        _offer(record, _SPARE)
    return _SPARE


def _offer(record: dict[str, Any], name: str) -> None:
    if isinstance(record.get("tools"), list):
        record["tools"].append(_schema(name))


def _new_tool(record: dict[str, Any]) -> dict[str, Any]:
    """A tool whose name no other has."""
    offered = _offered(record)
    return _schema(next(name for number in range(len(offered) + 1) if (name := f"{_SPARE}_{number}") not in offered))


def _schema(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {}}}

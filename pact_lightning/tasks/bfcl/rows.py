"""BFCL's files of multi-turn rows; their ground truth, written as Python calls, is read without running it."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pact_lightning.tasks.bfcl.package import api_class, check_classes, tool_schemas
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.errors import TaskFieldError, TaskFileError, needed, typed
from pact_lightning.utils.json_lines import read_json_lines


@cache
def parameter_names(class_names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return the parameters of every function of the APIs, in the order of its signature.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """
    return {
        name: tuple(inspect.signature(getattr(api_class(class_name), name)).parameters)[1:]  # without self
        for class_name in class_names
        for name in (str(tool["function"]["name"]) for tool in tool_schemas([class_name]))
    }


def parse_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """Read a call such as ``mv('a.txt', destination='b')``; positional arguments get their parameters' names.

    Args:
        text: The call, as one Python expression with literal arguments.
        parameters: Parameter names by function, in order.

    Returns:
        The call.

    Raises:
        ValueError: The text is no such call; the message says why.

    >>> parse_call("mv('a.txt', destination='b')", {"mv": ("source", "destination")})
    {'name': 'mv', 'arguments': {'source': 'a.txt', 'destination': 'b'}}
    """
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not a Python expression") from error
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise ValueError(f"{text!r} is not the call of a function by its name")
    name = expression.func.id
    if name not in parameters:
        raise ValueError(f"{text!r} calls {name!r}, which none of the involved classes has")
    known = parameters[name]
    if len(expression.args) > len(known):
        raise ValueError(f"{text!r} has {len(expression.args)} positional arguments, but {name} takes {len(known)}")
    given = [(known[place], value) for place, value in enumerate(expression.args)]
    given += [(keyword.arg or "**", keyword.value) for keyword in expression.keywords]
    arguments: dict[str, Any] = {}
    for parameter, value in given:
        if parameter not in known:
            raise ValueError(f"{text!r} has the argument {parameter!r}, but {name} takes {', '.join(known) or 'none'}")
        if parameter in arguments:
            raise ValueError(f"{text!r} gives {parameter!r} twice")
        arguments[parameter] = _literal(value, text)
    return ToolCall(name=name, arguments=arguments)


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return _json_value(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} has an argument that is no literal JSON value") from error


def _json_value(value: Any) -> Any:
    """Return the value as JSON would give it back: tuples are lists.

    Raises:
        TypeError: JSON has no such value.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_value(item) for key, item in value.items()}
    raise TypeError(f"JSON has no {type(value).__name__}")


Category = Literal["base", "miss_func", "miss_param", "long_context"]
CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True, slots=True)
class BFCLRow:
    """One row with its ground truth.

    Attributes:
        id: Its id, such as ``multi_turn_base_12``.
        scenario: The number in it; the same scenario has the same number in every category.
        category: The category.
        turns: The user's words, turn by turn; empty in a turn that only releases functions.
        released: Functions that come with a later user turn, by its index. One that the ground truth calls before
            that turn is not held back (``multi_turn_miss_func_49`` has one): nobody could solve the task. [D]
        classes: The simulated APIs.
        initial_config: The state that each of them loads.
        ground_truth: Calls per user turn.
    """

    id: str
    scenario: int
    category: Category
    turns: tuple[str, ...]
    released: Mapping[int, tuple[str, ...]]
    classes: tuple[str, ...]
    initial_config: Mapping[str, Any]
    ground_truth: tuple[tuple[ToolCall, ...], ...] = ()


def read_rows(folder: Path, category: Category) -> Iterator[tuple[Path, int, BFCLRow]]:
    """Yield the rows of a category with their file and line.

    Raises:
        FileNotFoundError: A file is missing.
        TaskFileError: A row, or its ground truth, is not well formed.
    """
    path = folder / f"BFCL_v4_multi_turn_{category}.json"
    answers_path = folder / "possible_answer" / path.name
    answers: dict[str, tuple[int, Any]] = {}
    for line, record in read_json_lines(answers_path):
        try:
            answers[needed(typed(record, dict, "(the line)"), "id", str)] = (line, record)
        except TaskFieldError as error:
            raise TaskFileError(answers_path, line, error.problem, error.field) from error
    seen: dict[str, int] = {}
    for line, record in read_json_lines(path):
        at, at_line = path, line
        try:
            row_id = needed(typed(record, dict, "(the line)"), "id", str)
            if row_id in seen:
                raise TaskFieldError("id", f"{row_id!r} is already the id of line {seen[row_id]}")
            seen[row_id] = line
            if row_id not in answers:
                raise TaskFieldError("id", f"{row_id!r} has no ground truth in {answers_path}")
            partial = _read_row(record, row_id, category)
            at, (at_line, answer) = answers_path, answers[row_id]
            yield path, line, _with_ground_truth(partial, answer)
        except TaskFieldError as error:
            raise TaskFileError(at, at_line, error.problem, error.field) from error


def _read_row(record: dict[str, Any], row_id: str, category: Category) -> BFCLRow:
    head, _, number = row_id.rpartition("_")
    if head != f"multi_turn_{category}" or not number.isdecimal():
        raise TaskFieldError("id", f"is {row_id!r}, must be multi_turn_{category}_ and the scenario's number")
    classes = needed(record, "involved_classes", list)
    try:
        check_classes([typed(name, str, "involved_classes") for name in classes])
    except TaskFieldError:
        raise
    except ValueError as error:
        raise TaskFieldError("involved_classes", str(error)) from error
    turns = needed(record, "question", list)
    if not turns:
        raise TaskFieldError("question", "has no user turn")
    released = _released(record.get("missed_function", {}), len(turns), parameter_names(tuple(classes)))
    return BFCLRow(
        id=row_id,
        scenario=int(number),
        category=category,
        turns=tuple(_user_words(turn, index, index in released) for index, turn in enumerate(turns)),
        released=released,
        classes=tuple(classes),
        initial_config=needed(record, "initial_config", dict),
    )


def _user_words(turn: Any, index: int, releases: bool) -> str:
    where = f"question[{index}]"
    messages = typed(turn, list, where)
    if not messages and releases:
        return ""  # the released functions are all that this user turn brings
    if len(messages) != 1 or typed(messages[0], dict, f"{where}[0]").get("role") != "user":
        raise TaskFieldError(where, "must hold one user message, or none in a turn that releases functions")
    words: str = needed(messages[0], "content", str, f"{where}[0].")
    return words


def _released(value: Any, turns: int, known: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    released: dict[int, tuple[str, ...]] = {}
    for key, names in typed(value, dict, "missed_function").items():
        where = f"missed_function.{key}"
        if not key.isdecimal() or not 0 < int(key) < turns:
            raise TaskFieldError(where, f"must be the index of a later user turn, 1 to {turns - 1}")
        for name in typed(names, list, where):
            if name not in known:
                raise TaskFieldError(where, f"names the function {name!r}, which none of the involved classes has")
        released[int(key)] = tuple(names)
    return released


def _with_ground_truth(row: BFCLRow, record: dict[str, Any]) -> BFCLRow:
    turns = needed(record, "ground_truth", list)
    if len(turns) != len(row.turns):
        raise TaskFieldError("ground_truth", f"has {len(turns)} user turns, but the row has {len(row.turns)}")
    parameters = parameter_names(row.classes)
    ground_truth = []
    for index, texts in enumerate(turns):
        calls = []
        for place, text in enumerate(typed(texts, list, f"ground_truth[{index}]")):
            where = f"ground_truth[{index}][{place}]"
            try:
                calls.append(parse_call(typed(text, str, where), parameters))
            except TaskFieldError:
                raise
            except ValueError as error:
                raise TaskFieldError(where, str(error)) from error
        ground_truth.append(tuple(calls))
    released = {
        turn: tuple(name for name in names if not _called_before(turn, name, ground_truth))
        for turn, names in row.released.items()
    }
    return replace(row, released=released, ground_truth=tuple(ground_truth))


def _called_before(turn: int, name: str, ground_truth: Sequence[Sequence[ToolCall]]) -> bool:
    return any(call["name"] == name for calls in ground_truth[:turn] for call in calls)

"""Reader of YAML that ends at once where a text would grow without bound or hides a part of itself."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

MAX_NODES = 200_000
"""Most values of a text, those that its aliases repeat among them."""
MAX_DEPTH = 100
_DIGITS = 4300
"""Python converts no longer numbers."""


class YamlTextError(yaml.YAMLError):
    """Error of a text that is refused though it is YAML."""


def read_yaml(text: str) -> Any:
    """Read a YAML text of plain values.

    Args:
        text: The whole text.

    Raises:
        yaml.YAMLError: It is no YAML, or :func:`check_yaml` refuses it.
    """
    check_yaml(text)
    return yaml.safe_load(text)


def check_yaml_file(path: Path) -> None:
    """Check that a file holds one YAML object, by the rules of :func:`check_yaml`.

    Args:
        path: The file.

    Raises:
        ValueError: It does not; the message names the file.
        OSError: It cannot be read.
    """
    try:
        text = path.read_bytes().decode()
        check_yaml(text)
        first = next((event for event in yaml.parse(text, Loader=yaml.SafeLoader) if _is_value(event)), None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}, {_problem(error)}") from error
    if not isinstance(first, yaml.MappingStartEvent):
        raise ValueError(f"{path} has no fields; a recipe has lines such as `trainer:`, with its fields below them")


def _is_value(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    tab = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{tab}"


@lru_cache(maxsize=64)
def check_yaml(text: str) -> None:
    """Refuse a text that grows by its aliases, is nested too deeply, or gives a key twice; nothing of it is made.

    Args:
        text: The whole text.

    Raises:
        YamlTextError: The text is refused.
        yaml.YAMLError: It is no YAML.
    """
    anchors: dict[str, int] = {}  # values by anchor, its aliases spelled out
    open_: list[_Open] = [_Open("", False)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        top = open_[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_) > MAX_DEPTH:
                raise YamlTextError(f"{_line(event)}: is nested more than {MAX_DEPTH} deep")
            open_.append(_Open(event.anchor or "", isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = open_.pop()
            if done.anchor:
                anchors[done.anchor] = done.nodes
            open_[-1].add(done.nodes, None, event)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor and any(each.anchor == event.anchor for each in open_):
                raise YamlTextError(f"{_line(event)}: the alias *{event.anchor} is inside what it repeats")
            top.add(anchors.get(event.anchor or "", 1), None, event)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                anchors[event.anchor] = 1
            if event.style is None and len(event.value) > _DIGITS and event.value.lstrip("+-").isdigit():
                raise YamlTextError(f"{_line(event)}: is a number with too many digits; put it in quotes")
            top.add(1, event.value, event)


class _Open:
    """A list or an object that is not closed yet."""

    def __init__(self, anchor: str, is_object: bool) -> None:
        self.anchor = anchor
        self.nodes = 1
        self._keys: set[str] | None = set() if is_object else None
        self._number = 0

    def add(self, nodes: int, text: str | None, event: yaml.Event) -> None:
        """Count a value; the first, third, ... of an object are its keys."""
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            problem = f"holds more than {MAX_NODES:,} values, those that aliases (*name) repeat among them"
            raise YamlTextError(f"{_line(event)}: {problem}")
        self._number += 1
        if self._keys is None or self._number % 2 == 0 or text is None or text == "<<":
            return
        if text in self._keys:
            raise YamlTextError(f"{_line(event)}: the key {text[:60]!r} appears twice in one object; keep one")
        self._keys.add(text)


def _line(event: yaml.Event) -> str:
    assert event.start_mark is not None
    return f"line {event.start_mark.line + 1}"

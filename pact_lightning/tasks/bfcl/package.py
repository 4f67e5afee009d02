"""Parts of ``bfcl-eval`` that are used: its data files, its function docs as tool schemas, and its simulated APIs.

The Berkeley Function Calling Leaderboard comes as the PyPI package ``bfcl-eval`` (Apache-2.0). Only data files and the
classes of the simulated APIs are used, so it is installed without what it depends on. Importing its ``eval_config``
would make folders in the current directory; nothing here imports it.
"""

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pact_lightning.types.prompt import ToolSchema

PACKAGE = "bfcl_eval"
INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 mpmath"
"""Command that installs it."""

_FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
API_CLASSES = tuple(_FILES)
"""The simulated APIs of the multi-turn categories. ``web_search`` and ``memory`` have further ones: not covered."""
STATELESS = frozenset({"MathAPI"})
"""Those that have no state and load no scenario."""
_SOURCES = f"{PACKAGE}.eval_checker.multi_turn_eval.func_source_code"


def data_folder() -> Path:
    """Return the folder of BFCL's data files.

    Raises:
        ImportError: ``bfcl-eval`` is not installed, or is a release without these files.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if not places or importlib.util.find_spec("mpmath") is None:
        raise ImportError(f"BFCL's tasks and simulated APIs are not installed; get them with: {INSTALL}")
    folder = Path(places[0]) / "data"
    if not (folder / "multi_turn_func_doc").is_dir():
        raise ImportError(
            f"the installed bfcl-eval has no multi-turn data in {folder}; get the release with: {INSTALL}"
        )
    return folder


def check_classes(names: Sequence[str]) -> None:
    """Check names of simulated APIs.

    Raises:
        ValueError: One is unknown.
    """
    for name in names:
        if name not in _FILES:
            raise ValueError(f"there is no simulated API {name!r}; there are {', '.join(API_CLASSES)}")


@cache
def api_class(name: str) -> type[Any]:
    """Return the class of a simulated API.

    Args:
        name: One of :data:`API_CLASSES`.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """
    check_classes([name])
    data_folder()
    found: type[Any] = getattr(importlib.import_module(f"{_SOURCES}.{_FILES[name]}"), name)
    return found


_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""BFCL's names of types that JSON Schema calls otherwise."""


def tool_schemas(class_names: Sequence[str]) -> tuple[ToolSchema, ...]:
    """Return the tools of some simulated APIs, API by API, in the order of the function docs.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """
    return tuple(schema for name in class_names for schema in _schemas_of(name))


@cache
def _schemas_of(class_name: str) -> tuple[ToolSchema, ...]:
    check_classes([class_name])
    docs = data_folder() / "multi_turn_func_doc" / f"{_FILES[class_name]}.json"
    lines = docs.read_text(encoding="utf-8").splitlines()
    return tuple(tool_schema(json.loads(line)) for line in lines if line.strip())


def tool_schema(doc: Mapping[str, Any]) -> ToolSchema:
    """Return one function doc as a tool schema; its ``response`` is left out [D].

    >>> tool_schema({"name": "f", "description": "F.", "parameters": {"type": "dict", "properties": {
    ...     "x": {"type": "float"}}}})["function"]["parameters"]
    {'type': 'object', 'properties': {'x': {'type': 'number'}}}
    """
    function = {"name": doc["name"], "description": doc["description"], "parameters": _json_schema(doc["parameters"])}
    return {"type": "function", "function": function}


def _json_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with JSON Schema's types; names of properties stay as they are."""
    schema = dict(value)
    if isinstance(schema.get("type"), str):
        schema["type"] = _TYPES.get(schema["type"], schema["type"])
    if "properties" in schema:
        schema["properties"] = {name: _json_schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _json_schema(schema["items"])
    return schema

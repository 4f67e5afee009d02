"""BFCL's function docs as tool schemas in OpenAI format."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pact_lightning.environments.bfcl_package import function_doc_file
from pact_lightning.tasks.prompt import ToolSchema

_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""BFCL's names of types that JSON Schema calls otherwise."""


def tool_schemas(class_names: Sequence[str]) -> tuple[ToolSchema, ...]:
    """The tools of some simulated APIs, API by API, in the order of the function docs.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """
    return tuple(schema for name in class_names for schema in _schemas_of(name))


@cache
def _schemas_of(class_name: str) -> tuple[ToolSchema, ...]:
    lines = function_doc_file(class_name).read_text(encoding="utf-8").splitlines()
    return tuple(tool_schema(json.loads(line)) for line in lines if line.strip())


def tool_schema(doc: Mapping[str, Any]) -> ToolSchema:
    """One function doc as a tool schema; what the function answers (``response``) is left out [D].

    >>> tool_schema({"name": "f", "description": "F.", "parameters": {"type": "dict", "properties": {
    ...     "x": {"type": "float"}}}})["function"]["parameters"]
    {'type': 'object', 'properties': {'x': {'type': 'number'}}}
    """
    function = {"name": doc["name"], "description": doc["description"], "parameters": _json_schema(doc["parameters"])}
    return {"type": "function", "function": function}


def _json_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with JSON Schema's types; names of properties are let be, whatever they are."""
    schema = dict(value)
    if isinstance(schema.get("type"), str):
        schema["type"] = _TYPES.get(schema["type"], schema["type"])
    if "properties" in schema:
        schema["properties"] = {name: _json_schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _json_schema(schema["items"])
    return schema

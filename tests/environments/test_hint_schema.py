"""Schemas of type hints, which are the same with every release of transformers."""

import enum
from typing import Any, Literal

import pytest
from transformers.utils import chat_template_utils

from pact_lightning.environments.function_schema import function_schema
from pact_lightning.environments.hint_schema import HintSchemaError, hint_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


RED_OR_BLUE = {"type": "string", "enum": ["red", "blue"]}


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (int, {"type": "integer"}),
        (Any, {}),
        (dict, {"type": "object"}),
        (Colour, RED_OR_BLUE),
        (Mixed, {"type": ["integer", "string"], "enum": [1, "two"]}),
        (Colour | None, RED_OR_BLUE | {"nullable": True}),
        (Literal["red", "blue"], RED_OR_BLUE),
        (list[Colour], {"type": "array", "items": RED_OR_BLUE}),
        (tuple[int, Colour], {"type": "array", "prefixItems": [{"type": "integer"}, RED_OR_BLUE]}),
        (dict[str, Colour], {"type": "object", "additionalProperties": RED_OR_BLUE}),
        (str | int | None, {"type": ["integer", "string"], "nullable": True}),
        (list | tuple, {"type": "array"}),
        (Literal["red", "blue"] | int, {"anyOf": [RED_OR_BLUE, {"type": "integer"}]}),
        (list[int] | str, {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]}),
    ],
)
def test_the_schema_of_a_type_hint_loses_nothing(hint, schema):
    assert hint_schema(hint) == schema


@pytest.mark.parametrize(
    "hint",
    [set, object, list[set[int]], dict[str, bytes], int | complex, tuple[int], tuple[int, ...], Literal[b"a"]],
)
def test_a_type_hint_without_a_schema_is_refused(hint):
    with pytest.raises(HintSchemaError):
        hint_schema(hint)


def paint(colour: Colour, size: int | list[int] = 1) -> set:
    """Paint.

    Args:
        colour: Of the paint.
        size: In metres.

    Returns:
        What was painted.
    """


def test_transformers_gives_the_texts_alone(monkeypatch):
    """Before 5.23 it takes an enum for an object; a release that takes everything for one stands for them."""
    monkeypatch.setattr(chat_template_utils, "_parse_type_hint", lambda hint: {"type": "object"})
    assert function_schema(paint) == {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paint.",
            "parameters": {
                "type": "object",
                "properties": {
                    "colour": RED_OR_BLUE | {"description": "Of the paint."},
                    "size": {
                        "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}],
                        "description": "In metres.",
                    },
                },
                "required": ["colour"],
            },
        },
    }

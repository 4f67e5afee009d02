"""What tools return, as text."""

import dataclasses
import datetime
import decimal
import enum
import json

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.tool_output import ToolOutputError, output_text, plain_result

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_results_are_json_and_text_is_itself(value):
    assert output_text(value) == value if isinstance(value, str) else json.loads(output_text(value)) == value


class Colour(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):  # noqa: UP042  # what StrEnum was before there was one
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    tags: list


class Model(pydantic.BaseModel):
    at: datetime.date
    inner: dict[str, int]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("", ""),
        ("é", "é"),
        (Word.BLUE, "blue"),
        ([Word.BLUE], '["blue"]'),
        ({"é": None}, '{"é": null}'),
        (Point(1, [Colour.RED, Point(2, [])]), '{"x": 1, "tags": ["red", {"x": 2, "tags": []}]}'),
        (Model(at="2024-05-17", inner={"a": 1}), '{"at": "2024-05-17", "inner": {"a": 1}}'),
        ([np.int64(3), np.float32(0.5), np.array([[1, 2]])], "[3, 0.5, [[1, 2]]]"),
        ({"when": datetime.datetime(2024, 5, 17), "much": decimal.Decimal("1.10")},
         '{"when": "2024-05-17 00:00:00", "much": "1.10"}'),
    ],
)  # fmt: skip
def test_how_results_are_written(value, text):
    assert output_text(value) == text


def test_a_cycle_of_dataclasses_is_refused():
    point = Point(1, [])
    point.tags.append(point)
    with pytest.raises(ToolOutputError, match="Circular"):
        output_text(point)


TEXTS = st.text(st.characters(exclude_categories=())) | st.text().map(np.str_)
FLAGS = st.none() | st.booleans() | st.booleans().map(np.bool_) | st.integers(0, 1)


@given(TEXTS, FLAGS, FLAGS, FLAGS)
def test_what_leaves_an_environment_is_of_python_s_own_types(text, error, solved, unanswered):
    result = plain_result(ToolResult(text, error=error, solved=solved, unanswered=unanswered))
    assert type(result.text) is str
    assert len(result.text.encode().decode()) == len(text)
    assert json.loads(json.dumps(dataclasses.astuple(result))) == [
        result.text, bool(error), None if solved is None else bool(solved), bool(unanswered)
    ]  # fmt: skip


ODD = st.none() | JSON | st.binary() | st.sampled_from([object(), ToolResult, np.ones(2), iter(()), 1j])


@given(ODD | st.tuples(ODD, ODD | FLAGS).map(lambda made: ToolResult(*made)))
def test_any_other_result_is_refused_in_words(value):
    try:
        result = plain_result(value)
    except TypeError as error:
        assert "ToolResult" in str(error)  # noqa: PT017  # which of them are refused is not known here
    else:
        assert isinstance(value.text, str)
        assert type(result.error) is bool

"""Plain functions as tools: schemas, arguments, results, and whatever a function may do wrong."""

import asyncio
import enum
import math
import threading
from functools import partial, update_wrapper
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils import get_json_schema

from pact_lightning.environments.function_schema import FunctionSchemaError
from pact_lightning.environments.functions import FunctionEnvironment
from pact_lightning.environments.protocol import Environment
from pact_lightning.environments.tool_output import ToolOutputError, failure_text, output_text


def area(width: int, height: int = 2, unit: str | None = None) -> str:
    """The area of a rectangle.

    Args:
        width: Its width.
        height: Its height.
        unit: Unit of both (choices: ["m", "ft"])
    """
    return f"{width * height} {unit}"


def join(words: list[str], sizes: dict[str, float] | None = None) -> list[str]:
    """Joins words.

    Args:
        words: The words.
        sizes: Their sizes.
    """
    return [*words, *(sizes or {})]


def either(one: list[int] | dict[str, str] | None) -> str:
    """Takes one or the other.

    Args:
        one: Either.
    """
    return str(one)


def fails(how: str) -> str:
    """Fails.

    Args:
        how: How.
    """
    raise {"exit": SystemExit(3), "key": KeyError("k"), "mute": ValueError(), "unspeakable": Unspeakable()}[how]


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


def paint(
    colour: Colour,
    size: Size | None = None,
    more: dict[str, list[Colour]] | None = None,
    at: tuple[int, Colour] | None = None,
    by_number: dict[int, str] | None = None,
    how: Literal["thin", "thick"] = "thin",
) -> str:
    """Paints.

    Args:
        colour: In which colour.
        size: How much.
        more: Further colours, by wall.
        at: Where, and in which colour.
        by_number: Names of numbers.
        how: How.
    """
    return repr([colour, size, more, at, by_number, how])


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({"colour": "red"}, [Colour.RED, None, None, None, None, "thin"]),
        ({"colour": "red", "size": 2, "how": "thick"}, [Colour.RED, Size.LARGE, None, None, None, "thick"]),
        ({"colour": "blue", "size": None, "more": {"a": ["red"]}},
         [Colour.BLUE, None, {"a": [Colour.RED]}, None, None, "thin"]),
        ({"colour": "red", "at": [1, "blue"]}, [Colour.RED, None, None, (1, Colour.BLUE), None, "thin"]),
        ({"colour": "red", "by_number": {"1": "one"}}, [Colour.RED, None, None, None, {1: "one"}, "thin"]),
    ],
)  # fmt: skip
def test_functions_get_what_their_type_hints_say(arguments, given):
    result = FunctionEnvironment([paint]).call("paint", arguments)
    assert (result.text, result.error) == (repr(given), False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"colour": "green"}, "colour: 'green' is not one of ['red', 'blue']"),
        ({"colour": "red", "size": "2"}, "size: '2' is not"),
        ({"colour": "red", "at": [1]}, "Wrong arguments: at[1]: Field required."),
        ({"colour": "red", "by_number": {"one": "one"}}, "Wrong arguments: by_number['one']['[key]']: Input should be"),
    ],
)
def test_what_a_type_hint_does_not_allow_is_told(arguments, said):
    result = FunctionEnvironment([paint]).call("paint", arguments)
    assert result.error
    assert said in result.text


def nothing() -> None:
    """Gives nothing."""


def raw(kind: str):
    """Gives what JSON cannot hold.

    Args:
        kind: Of what kind.
    """
    ring: list = []
    ring.append(ring)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    return {"bytes": b"x", "nan": math.nan, "ring": ring, "deep": deep, "set": {1}, "key": {(1, 2): 3}}[kind]


def test_follows_the_protocol_and_offers_transformers_schemas():
    environment = FunctionEnvironment([area, f"{__name__}.join"])
    assert isinstance(environment, Environment)
    assert environment.tools == [get_json_schema(area), get_json_schema(join)]


def test_a_module_gives_its_public_functions_in_order():
    environment = FunctionEnvironment("function_tools")
    assert [tool["function"]["name"] for tool in environment.tools] == ["zebra", "ant"]
    assert environment.call("zebra", {"stripes": 3}).text == "6"


def lookup(table, key: str, default: "int" = 0) -> int:
    """Looks a key up.

    Args:
        key: The key.
        default: What stands for a key that is not there.
    """
    return table.get(key, default)


async def later_lookup(table, key: str) -> int:
    """Looks a key up.

    Args:
        key: The key.
    """
    return table[key]


TABLE = {"a": 1}
looked_up = partial(lookup, TABLE)
renamed = partial(looked_up, default=7)
renamed.__name__ = "seven_by_default"
wrapped = update_wrapper(partial(lookup, table=TABLE), lookup)


@pytest.mark.parametrize(
    ("function", "name", "open_arguments", "answer"),
    [
        (looked_up, "lookup", {"key", "default"}, "0"),
        (f"{__name__}.looked_up", "lookup", {"key", "default"}, "0"),
        (wrapped, "lookup", {"key", "default"}, "0"),
        (renamed, "seven_by_default", {"key"}, "7"),
        (partial(later_lookup, {"b": 2}), "later_lookup", {"key"}, "2"),
    ],
)
def test_a_partial_is_the_function_of_what_it_leaves_open(function, name, open_arguments, answer):
    environment = FunctionEnvironment([function])
    (tool,) = environment.tools
    assert tool["function"]["name"] == name
    assert set(tool["function"]["parameters"]["properties"]) == open_arguments
    assert environment.call(name, {"key": "b"}).text == answer
    # What the partial sets is not the policy's to give.
    assert environment.call(name, {"key": "b", "table": {"b": 3}}).text.startswith("Wrong arguments: there is no arg")
    environment.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"width": 3}, "6 None"),
        ({"width": 3, "height": 5, "unit": "m"}, "15 m"),
        ({"width": 3, "unit": None}, "6 None"),
    ],
)
def test_right_arguments(arguments, expected):
    result = FunctionEnvironment([area]).call("area", arguments)
    assert (result.text, result.error) == (expected, False)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("area", {}, "'width' is a required property"),
        ("area", {"width": "3"}, "width: '3' is not of type 'integer'"),
        ("area", {"width": 3.0}, "width: 3.0 is not of type 'integer'"),
        ("area", {"width": True}, "width: True is not of type 'integer'"),
        ("area", {"width": 3, "unit": "km"}, "unit: 'km' is not one of ['m', 'ft', None]"),
        ("either", {"one": {"a": 1}}, "one.a: 1 is not of type 'string'"),
        ("area", {"width": 3, "colour": 1}, "there is no argument 'colour'"),
        ("join", {"words": ["a", 2]}, "words[1]: 2 is not of type 'string'"),
        ("join", {"words": [], "sizes": {"a": "b"}}, "sizes.a: 'b' is not of type 'number'"),
        ("nothing", {"x": 1}, "there is no argument 'x'. nothing takes no arguments."),
        ("volume", {}, "There is no tool named 'volume'. The tools are: area, join, nothing, either."),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(name, arguments, said):
    result = FunctionEnvironment([area, join, nothing, either]).call(name, arguments)
    assert result.error
    assert said in result.text


def test_a_huge_wrong_argument_is_not_repeated():
    result = FunctionEnvironment([area]).call("area", {"width": "9" * 1_000_000})
    assert result.error
    assert len(result.text) < 400
    assert "is not of type 'integer'" in result.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["width", "height", "unit", "colour"]), JSON))
def test_any_arguments_give_a_result_and_right_ones_the_function_s(arguments):
    """The judge is restated by hand, apart from the schema's validator."""
    result = FunctionEnvironment([area]).call("area", arguments)
    right = (
        arguments.keys() <= {"width", "height", "unit"}
        and type(arguments.get("width")) is int
        and type(arguments.get("height", 2)) is int
        and arguments.get("unit") in (None, "m", "ft")
    )
    assert result.error == (not right)
    assert result.text == area(**arguments) if right else result.text.startswith("Wrong arguments: ")


@pytest.mark.parametrize("kind", ["bytes", "nan", "ring", "deep", "set", "key"])
def test_what_json_cannot_hold_is_an_error_response(kind):
    result = FunctionEnvironment([raw]).call("raw", {"kind": kind})
    assert result.error
    assert result.text.startswith("The tool raw failed: the result ")
    with pytest.raises(ToolOutputError, match="the result"):
        output_text(raw(kind))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("key", "The tool failed: KeyError: 'k'"),
        ("mute", "The tool failed: ValueError"),
        ("exit", "The tool failed: SystemExit: 3"),
        ("unspeakable", "The tool failed: Unspeakable"),
    ],
)
def test_exceptions_are_error_responses(how, text):
    result = FunctionEnvironment([fails]).call("fails", {"how": how})
    assert (result.text, result.error) == (text, True)
    assert failure_text(ValueError("a")) == "The tool failed: ValueError: a"


LOOPS: list = []


async def later(what: str) -> str:
    """Waits.

    Args:
        what: For what.
    """
    LOOPS.append(asyncio.get_running_loop())
    await asyncio.sleep(0)
    if what == "error":
        raise ValueError("too late")
    if what == "cancel":
        raise asyncio.CancelledError
    if what == "exit":
        raise SystemExit(3)
    return what


def test_async_functions_share_their_environment_s_loop_across_threads():
    LOOPS.clear()
    one, other = FunctionEnvironment([later]), FunctionEnvironment([later])
    texts: list = []

    def call(environment, what):
        thread = threading.Thread(target=lambda: texts.append(environment.call("later", {"what": what}).text))
        thread.start()
        thread.join()

    call(one, "a")
    call(other, "b")
    call(one, "error")
    call(one, "cancel")
    call(one, "exit")
    call(one, "c")
    assert texts == ["a", "b", "The tool failed: ValueError: too late",
                     "The tool failed: CancelledError", "The tool failed: SystemExit: 3", "c"]  # fmt: skip
    assert LOOPS[0] is LOOPS[2] is LOOPS[3] is LOOPS[4] is LOOPS[5]
    assert LOOPS[0] is not LOOPS[1]
    one.close()
    assert LOOPS[0].is_closed()
    assert not LOOPS[1].is_closed()
    other.close()


@pytest.mark.parametrize(
    ("functions", "error", "said"),
    [
        ("no_such_module", ImportError, "the module 'no_such_module' cannot be imported"),
        ("json.tool.nothing", ImportError, "cannot be imported"),
        (["area"], ImportError, "give its module too, such as `my_module.area`"),
        (["json"], ImportError, "'json' is a module; give it alone (functions: json), or the paths of its functions"),
        ([f"{__name__}.JSON"], ImportError, "is not a function"),
        ([], FunctionSchemaError, "no functions"),
        ([area, area], FunctionSchemaError, "two tools are named 'area'"),
    ],
)
def test_wrong_paths_are_one_sentence(functions, error, said):
    with pytest.raises(error) as caught:
        FunctionEnvironment(functions)
    assert said in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400))
def test_deep_arguments_are_refused_in_words(depth):
    value: object = 1
    for _ in range(depth):
        value = [value]
    result = FunctionEnvironment([area]).call("area", {"width": value})
    assert result.error
    assert result.text.startswith("Wrong arguments: ")


def test_closing_ends_a_call_that_still_runs_in_another_thread():
    """A call that was given up must not keep the environment from closing, nor run on for ever."""
    environment = FunctionEnvironment([f"{__name__}.wait_for_ever"])
    answers = []
    thread = threading.Thread(target=lambda: answers.append(environment.call("wait_for_ever", {})))
    thread.start()
    assert STARTED.wait(10)
    environment.close()
    thread.join(10)
    assert not thread.is_alive()
    assert answers[0].error


STARTED = threading.Event()


async def wait_for_ever() -> str:
    """Waits for ever."""
    STARTED.set()
    await asyncio.Event().wait()
    return "never"

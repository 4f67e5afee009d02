"""Functions that cannot be tools, and what the sentence about each says."""

import dataclasses
import datetime
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from pact_lightning.environments.function_schema import FunctionSchemaError
from pact_lightning.environments.functions import FunctionEnvironment


def no_docstring(x: int):
    return x


def no_hint(x):
    """Does."""


def no_description(x: int):
    """Does."""


def odd_hint(x: set):
    """Does.

    Args:
        x: A set.
    """


def odd_inside(x: int, y: list[Sequence[int]]):
    """Does.

    Args:
        x: One.
        y: Many.
    """


@dataclasses.dataclass
class Trip:
    goal: str


def odd_class(trip: Trip):
    """Does.

    Args:
        trip: A trip.
    """


def odd_time(when: datetime.datetime | None):
    """Does.

    Args:
        when: When.
    """


def picture(picture: torch.Tensor):
    """Does.

    Args:
        picture: A picture.
    """


def missing(x: "Nowhere"):  # noqa: F821
    """Does.

    Args:
        x: One.
    """


def parts():
    """Does."""
    yield 1


async def late_parts():
    """Does."""
    yield 1


def many(**more: int):
    """Does."""


def by_place(x: int, /):
    """Does.

    Args:
        x: One.
    """


def choices_in_words(x: str):
    """Does.

    Args:
        x: One (choices: [a, b])
    """


class Shop:
    """A shop."""

    def sell(self, x: int) -> int:
        """Sells.

        Args:
            x: How many.
        """
        return x

    __call__ = sell


def parts_of(x: int, y: int):
    """Does."""
    yield x


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_docstring, "no_docstring cannot become a tool: it has no docstring"),
        (no_hint, "its argument x has no type hint; add one"),
        (no_description, "no description for the argument 'x'; describe it under `Args:`"),
        (odd_hint, "its argument x has the type hint set, of which no schema can be made; take a `list` there"),
        (odd_inside, "its argument y has the type hint list[collections.abc.Sequence[int]], of which no schema"),
        (
            odd_class,
            "the type hint test_function_refusals.Trip, of which no schema can be made; take a `dict`",
        ),
        (odd_time, "its argument when has the type hint datetime.datetime | None, of which no schema"),
        (
            picture,
            "its argument picture has the type hint torch.Tensor, of which no schema can be made; take a",
        ),
        (missing, "name 'Nowhere' is not defined"),
        (parts, "it is a generator; return the whole result"),
        (late_parts, "it is a generator; return the whole result"),
        (many, "put named ones in the place of `**more: int`"),
        (by_place, "remove the `/` after x"),
        (choices_in_words, 'write (choices: ["a", "b"]), or use Literal'),
        (Shop.sell, "it is a method without its object (self); give the method of an object"),
        (Shop(), "an object has no name to call it by; give a method"),
        (partial(parts_of, 1), "it is a generator; return the whole result"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_told_what_to_add(function, said):
    with pytest.raises(FunctionSchemaError) as caught:
        FunctionEnvironment([function])
    assert said in str(caught.value)
    named = getattr(function, "func", function)
    assert str(caught.value).startswith(
        f"{getattr(named, '__qualname__', type(named).__name__)} cannot become a tool: "
    )
    assert "\n" not in str(caught.value)

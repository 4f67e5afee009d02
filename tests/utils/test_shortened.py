"""Values in sentences and the wording of what JSON's reader says."""

from ast import literal_eval

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pact_lightning.dialogue.tool_text import parse_tool_calls
from pact_lightning.utils.errors import differing, shortened
from pact_lightning.utils.json_text import JsonTextError, parse_json


@given(text=st.text(max_size=40), limit=st.integers(4, 40))
def test_a_text_keeps_its_quotes_and_its_start(text, limit):
    shown = literal_eval(shortened(text, limit))
    assert len(shown) <= limit
    assert shown == text or (len(text) > limit and shown == f"{text[: limit - 3]}...")


@pytest.mark.parametrize("value", [list(range(99)), {"a": "b" * 99}, ValueError("c" * 99)])
def test_other_values_say_that_they_go_on(value):
    assert len(shortened(value, 30)) <= 30
    assert shortened(value, 30).endswith("...")
    assert shortened(value, 500) == repr(value)


def test_an_open_string_is_told_in_words():
    with pytest.raises(JsonTextError, match=r"Unterminated string starting at character 6$"):
        parse_json('{"a": "b')
    (parsed,) = parse_tool_calls('<tool_call>{"name": "b</tool_call>')
    assert "starting at character" in parsed.error
    assert "at at" not in parsed.error


@given(same=st.text(max_size=300), one=st.text(max_size=100), other=st.text(max_size=100), limit=st.integers(16, 90))
def test_excerpts_of_texts_that_differ_are_not_the_same(same, one, other, limit):
    texts = same + one, same + other
    assume(texts[0] != texts[1])
    shown = [literal_eval(excerpt) for excerpt in differing(*texts, limit)]
    assert shown[0] != shown[1]
    for text, excerpt in zip(texts, shown, strict=True):
        assert len(excerpt) <= limit
        assert excerpt.removeprefix("...").removesuffix("...") in text
        assert excerpt == text or len(text) > limit or excerpt.startswith("...")

"""YAML that grows without bound or hides a part of itself is refused by its line, before anything is made of it."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.utils.yaml_text import MAX_NODES, YamlTextError, check_yaml_file, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, f"line 6: holds more than {MAX_NODES:,} values"),
        (BOMB.replace("a1:", "b: {<<: {c: 1}}\na1:"), "values, those that aliases"),
        ("a: &a\n  b: [*a]\n", "line 2: the alias *a is inside what it repeats"),
        ("a: " + "[" * 5000, "line 1: is nested more than 100 deep"),
        ("\n" + "{a: " * 5000, "line 2: is nested more than 100 deep"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "line 2: the key 'c' appears twice in one object"),
        ("a: " + "9" * 5000, "line 1: is a number with too many digits"),
    ],
)
def test_what_is_refused(tmp_path, text, sentence):
    with pytest.raises(YamlTextError, match=re.escape(sentence)):
        read_yaml(text)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, line .*{re.escape(sentence.partition(': ')[2])}"):
        check_yaml_file(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x00\xff\x01", "is not UTF-8 (byte 1)"),
        (b"a: \xe9", "is not UTF-8 (byte 3)"),
        (b"a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        (b"", "has no fields"),
        (b"- a\n", "has no fields"),
        (b"hello", "has no fields"),
    ],
)
def test_what_is_no_recipe_is_named(tmp_path, content, sentence):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as told:
        check_yaml_file(path)
    assert str(told.value).startswith(str(path))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab*&<!: ", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<*&", max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_plain_values_and_repeated_ones_are_read_as_they_are(value):
    assert read_yaml(yaml.safe_dump({"a": value, "b": [value, value]})) == {"a": value, "b": [value, value]}

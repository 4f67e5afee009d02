"""Tool-call parsing: strict, total, and harmless whatever a model writes."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pact_lightning.dialogue.tool_text import parse_tool_calls

CHARACTERS = st.characters(exclude_categories=["Cs"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(CHARACTERS)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS), inner, max_size=3)
)
FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool_call",
        '{"name": "f", "arguments": {}}',
        '{"name": 1}',
        "[" * 50,
        "{" * 50,
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
        '"\\ud800"',
        '"',
        "\\",
        "\n",
        "null",
        ":",
        ",",
        "}",
        "\x00",
        "é",
    ]
)


def block(body):
    return f"<tool_call>\n{body}\n</tool_call>"


def only(body):
    (parsed,) = parse_tool_calls(block(body))
    assert (parsed.call is None) == bool(parsed.error)
    return parsed


def usable(call):
    """What everything after the parser relies on."""
    text = json.dumps(call, ensure_ascii=False, allow_nan=False)
    return json.loads(text.encode().decode()) == call


TAGS = st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "</think>", '"', "\\"]), max_size=3).map("".join)


@given(st.text(CHARACTERS, min_size=1), st.dictionaries(st.text(CHARACTERS) | TAGS, VALUES | TAGS))
def test_a_well_formed_call_is_read_back_exactly(name, arguments):
    call = {"name": name, "arguments": arguments}
    assert only(json.dumps(call)).call == call
    assert only(json.dumps(call, ensure_ascii=False)).call == call


HOSTILE = st.lists(FRAGMENTS | st.text(max_size=20), max_size=20).map("".join)


@given(HOSTILE)
@example(block('{"name": "f", "arguments": ' + "[" * 100_000))
@example(block('{"name": "f", "arguments": {"a": ' + "[" * 400 + "]" * 400 + "}}"))
@example(block('{"name": "f", "arguments": {"a": ' + "9" * 10_000 + "}}"))
@example(block('{"name": "f", "arguments": {"a": "\\udfff"}}'))
@example("<tool_call>" * 2000)
def test_hostile_text_never_raises_and_gives_only_usable_calls(text):
    parsed = parse_tool_calls(text)
    for entry in parsed:
        assert (entry.call is None) == bool(entry.error)
        if entry.call is not None:
            assert set(entry.call) == {"name", "arguments"}
            assert usable(entry.call)
        else:
            assert entry.error.endswith((".", ")."))
            assert "\n" not in entry.error
    # One entry per opened block; a tag inside a block that is still open opens none.
    assert len(parsed) <= text.count("<tool_call>")
    assert bool(parsed) == ("<tool_call>" in text)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not valid JSON"),
        ('{"name": "f", "arguments": {}', "not valid JSON"),
        ("{'name': 'f', 'arguments': {}}", "not valid JSON"),
        ('{"name": "f", "arguments": {}} tail', "Extra data"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is not a JSON value"),
        ('{"name": "f", "arguments": {"a": -Infinity}}', "-Infinity is not a JSON value"),
        ('{"name": "f", "arguments": {"a": [1e999]}}', "too large"),
        ('{"name": "f", "arguments": {"a": %s}}' % ("9" * 5000), "not valid JSON"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "same key twice"),
        ('{"name": "f", "name": "g", "arguments": {}}', "same key twice"),
        ('{"name": "f", "arguments": {"\\ud800": 1}}', "half of a character"),
        ('{"name": "\\ud83d", "arguments": {}}', "half of a character"),
        ('{"name": "f", "arguments": {"a": %s}}' % ("[" * 200 + "]" * 200), "nested too deeply"),
        ('{"name": "f", "arguments": %s' % ("[" * 100_000), "nested too deeply"),
        ("[]", "not a JSON object"),
        ('"f"', "not a JSON object"),
        ("{}", '"name"'),
        ('{"name": "", "arguments": {}}', '"name"'),
        ('{"name": 3, "arguments": {}}', '"name"'),
        ('{"name": "f"}', '"arguments"'),
        ('{"name": "f", "arguments": "{}"}', '"arguments"'),
        ('{"name": "f", "arguments": []}', '"arguments"'),
    ],
)
def test_a_malformed_block_says_what_is_wrong(body, reason):
    assert reason in only(body).error


def test_a_paired_surrogate_escape_is_one_character():
    assert only('{"name": "f", "arguments": {"a": "\\ud83d\\ude00"}}').call["arguments"] == {"a": "😀"}


def test_python_values_that_look_alike_keep_their_types():
    arguments = only('{"name": "f", "arguments": {"a": 1, "b": 1.0, "c": true, "d": "1"}}').call["arguments"]
    assert [type(value) for value in arguments.values()] == [int, float, bool, str]
    assert math.isclose(arguments["b"], 1.0)


def test_blocks_come_in_order_and_a_bad_one_hides_no_other():
    good = '{"name": "%s", "arguments": {}}'
    text = f"first {block(good % 'a')} and {block('oops')}\n{block(good % 'b')} tail"
    parsed = parse_tool_calls(text)
    assert [entry.call and entry.call["name"] for entry in parsed] == ["a", None, "b"]


def test_an_unclosed_block_is_malformed_however_good_its_json():
    parsed = parse_tool_calls('<tool_call>\n{"name": "f", "arguments": {}}\n')
    assert [entry.error for entry in parsed] == ["The tool call is not closed with </tool_call>."]


def test_a_tag_in_the_second_of_two_objects_ends_no_block():
    two = (
        json.dumps({"name": "a", "arguments": {}})
        + "\n"
        + json.dumps({"name": "b", "arguments": {"x": "</tool_call>"}})
    )
    parsed = parse_tool_calls(f"{block(two)} {block('oops')}")
    assert [entry.error.partition(":")[2][:11] for entry in parsed] == [" Extra data", " Expecting "]


def test_text_without_a_block_holds_no_call():
    assert parse_tool_calls('{"name": "f", "arguments": {}} </tool_call>') == []

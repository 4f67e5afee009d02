"""Files that are not what they should be: every mistake has its place, and nothing else ever comes out."""

import contextlib
import gzip
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toolhop_rows import ROW as TOOLHOP_ROW

from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.ftrl.tasks import FTRLTasks
from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.tasks.record import task_to_json
from pact_lightning.tasks.toolhop.tasks import ToolHopTasks
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import read_json_lines, scan_json_lines, scan_json_list
from pact_lightning.utils.json_text import MAX_DEPTH, JsonTextError, check_json, parse_json


@pytest.fixture
def file(tmp_path):
    def write(raw, name="tasks.jsonl"):
        path = tmp_path / name
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return path

    return write


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not valid JSON: Expecting value at character 0"),
        ('{"a": 1,}', "is not valid JSON: "),
        ("[1] [2]", "something follows the value at character 4"),
        ("[NaN]", "NaN is not a JSON value"),
        ('{"a": -Infinity}', "-Infinity is not a JSON value"),
        ("1e999", "holds a number that is too large: 1e999"),
        ("1" * 5000, "an integer with too many digits; write it as a string"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "an object with the key 'b' twice"),
        (f'{{"{"k" * 100}": 1, "{"k" * 100}": 2}}', f"the key '{'k' * 60}' twice"),
        (r'["\ud83d"]', "half of a character"),
        (r'{"\udc00": 1}', "half of a character"),
        (nested(MAX_DEPTH + 1), f"is nested more than {MAX_DEPTH} deep"),
        (nested(100_000), f"is nested more than {MAX_DEPTH} deep"),
        ('{"a":' * 5000, f"is nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_no_usable_json_is_refused(text, problem):
    with pytest.raises(JsonTextError) as caught:
        parse_json(text)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200


def test_what_is_unusual_and_sound_is_read():
    assert parse_json(" [1] \r\n") == [1]
    assert parse_json(r'["\ud83d\ude00"]') == ["😀"]
    assert parse_json("9" * 400) == int("9" * 400)
    assert parse_json("1e-999") == 0.0
    assert parse_json(nested(MAX_DEPTH)) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
)  # fmt: skip


@given(json_values)
def test_sound_values_can_be_written(value):
    check_json(value)
    check_json({"in": (value,)})


def looped():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": {1, 2}}, "holds what JSON cannot: Object of type set"),
        ({(1, 2): 3}, "holds what JSON cannot: keys must be"),
        ([b"x"], "holds what JSON cannot: Object of type bytes"),
        ([1, float("nan")], "a number that is not finite or has too many digits"),
        ((float("-inf"),), "a number that is not finite or has too many digits"),
        ([10**5000], "a number that is not finite or has too many digits"),
        ({"\ud83d": 1}, "half of a character"),
        (("\udc00",), "half of a character"),
        (parse_json(nested(MAX_DEPTH)), ""),
        ((parse_json(nested(MAX_DEPTH)),), f"is nested more than {MAX_DEPTH} deep"),
        (looped(), f"is nested more than {MAX_DEPTH} deep"),
    ],
)
def test_values_that_json_cannot_hold_are_refused(value, problem):
    if not problem:
        check_json(value)
        return
    with pytest.raises(JsonTextError, match=problem):
        check_json(value)


@given(json_values, st.booleans())
def test_sound_json_is_read_as_the_standard_library_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == json.loads(text)


def test_a_byte_that_is_not_utf_8_is_named(file):
    path = file(b'{"a": 1}\n\n{"b": "\xff"}\n')
    with pytest.raises(TaskFileError, match=r"tasks.jsonl, line 3: is not UTF-8: byte 7 of it is 0xff; save") as caught:
        list(read_json_lines(path))
    assert caught.value.line == 3
    with pytest.raises(TaskFileError, match=r"line 1: is not UTF-8: byte 4 of it is 0x80"):
        list(read_json_lines(file(b"\xef\xbb\xbf[\x80]")))


def test_a_byte_order_mark_is_no_part_of_the_text(file):
    assert list(read_json_lines(file(b'\xef\xbb\xbf{"a": 1}\r\n[2]'))) == [(1, {"a": 1}), (2, [2])]
    (item,) = scan_json_list(file(b"\xef\xbb\xbf[1]"))
    assert (item.number, item.value, item.error) == (1, 1, None)
    for encoding in ("utf-16", "utf-16-be"):
        raw = ("\ufeff" if encoding == "utf-16-be" else "") + "[1]\n"
        with pytest.raises(TaskFileError, match="line 1: the file is UTF-16; save it as UTF-8"):
            list(read_json_lines(file(raw.encode(encoding))))


def test_long_lines_are_read_and_longer_ones_named(file):
    long = json.dumps("x" * (10 << 20))
    path = file(f'[1]\n{long}\n"short"')
    assert [(number, len(value)) for number, value in read_json_lines(path)] == [(1, 1), (2, 10 << 20), (3, 5)]
    with pytest.raises(TaskFileError, match="line 2: is longer than 10 MiB \\(max_line_mb\\); look for"):
        list(read_json_lines(path, max_line_mb=10))
    scanned = list(scan_json_lines(path, 10))
    assert [line.number for line in scanned] == [1, 2, 3]
    assert [line.error is None for line in scanned] == [True, False, True], "it goes on at the next line"
    exact = file("[" + " " * ((1 << 20) - 2) + "]\n[2]", "exact.jsonl")
    assert list(read_json_lines(exact, max_line_mb=1)) == [(1, []), (2, [2])], "the line end is not counted"
    with pytest.raises(ValueError, match="max_line_mb must be at least 1"):
        list(read_json_lines(path, max_line_mb=0))
    with pytest.raises(TaskFileError, match=r"the file is larger than 10 MiB \(max_file_mb\); JSON Lines files"):
        list(scan_json_list(path, max_file_mb=10))


def test_a_damaged_compressed_file_is_named_by_the_line_it_breaks_at(file):
    whole = gzip.compress("".join(f"[{number}]\n" for number in range(20_000)).encode())
    assert len(list(read_json_lines(file(whole, "a.jsonl.gz")))) == 20_000
    for raw, word in ((whole[:-9], "ends too early"), (whole[:-8] + b"\0" * 8, "is damaged")):
        scanned = list(scan_json_lines(file(raw, "b.jsonl.gz")))
        assert [line.value for line in scanned[:-1]] == [[number] for number in range(len(scanned) - 1)]
        assert len(scanned) > 100
        assert scanned[-1].number == len(scanned)
        assert word in str(scanned[-1].error)
        with pytest.raises(TaskFileError, match=f"line {len(scanned)}: cannot be read: .* {word}"):
            list(read_json_lines(file(raw, "b.jsonl.gz")))
    with pytest.raises(TaskFileError, match=r"the file is not compressed; rename it without \.gz"):
        list(read_json_lines(file("[1]", "c.jsonl.gz")))
    with pytest.raises(TaskFileError, match=r"the file is compressed; rename it to end in \.gz"):
        list(read_json_lines(file(whole, "d.jsonl")))
    assert list(read_json_lines(file("", "e.jsonl.gz"))) == []


def test_nested_json_strings_are_read_as_strictly(file):
    row = {"messages": [{"role": "user", "content": "?"}], "tools": "[]", "codes": "{}", "unsolved_set": "{}"}
    for value, problem in (('{"f": ["a"], "f": ["b"]}', "twice"), ("[NaN]", "NaN"), (nested(2000), "nested")):
        with pytest.raises(TaskFileError, match=f"line 1: field `unsolved_set`: .*{problem}"):
            FTRLTasks(file(json.dumps({**row, "unsolved_set": value}))).load()


PACT = json.dumps(task_to_json(make_task("train", 0))).encode()
FTRL = json.dumps(
    {
        "messages": [{"role": "user", "content": "?"}],
        "tools": json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        "codes": json.dumps({"f": "def f(): return 1"}),
        "unsolved_set": json.dumps({"f": ["1"]}),
        "ground_truth": [{"name": "f", "parameters": {}}],
        "answer": "1",
    }
).encode()
TOOLHOP = json.dumps([TOOLHOP_ROW], indent=1).encode()
KNOWN = json.dumps({"index": 0, "calls": [{"name": "f", "arguments": {}, "observation": "1"}], "unsolved": []}).encode()

NASTY = [
    b"",
    b"\xff",
    b"\x00",
    b"\n",
    b'"',
    b"{",
    b"[",
    b"]" * 3,
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"[" * 3000,
    b"-1",
]
edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from(NASTY) | st.binary(max_size=5)), max_size=4
)


def mutated(raw, changes):
    for start, length, new in changes:
        at = start % (len(raw) + 1)
        raw = raw[:at] + new + raw[at + length :]
    return raw


def loaded_or_refused(load):
    """Anything but these two errors goes through and fails the test."""
    with contextlib.suppress(TaskFileError, FileNotFoundError):
        assert all(isinstance(task, Task) for task in load())


@settings(max_examples=150, deadline=None)
@example([], False, "pact")
@given(edits, st.booleans(), st.sampled_from(["pact", "ftrl", "known", "toolhop"]))
def test_a_mutated_file_is_loaded_or_refused_with_its_place(tmp_path_factory, changes, packed, kind):
    """Bytes changed anywhere, before or after compression, in any format: tasks, or one sentence."""
    raw = {"pact": PACT + b"\n" + PACT, "ftrl": FTRL, "known": KNOWN, "toolhop": TOOLHOP}[kind]
    folder = tmp_path_factory.mktemp("mutated")
    path = folder / (f"file.jsonl{'.gz' if packed else ''}")
    path.write_bytes(mutated(gzip.compress(raw), changes) if packed else mutated(raw, changes))
    if kind == "known":
        (folder / "rows.jsonl").write_bytes(FTRL)
        load = FTRLTasks(folder / "rows.jsonl", reference_calls=path).load
    else:
        load = {"pact": JsonlTasks, "ftrl": FTRLTasks, "toolhop": ToolHopTasks}[kind](path).load
    loaded_or_refused(load)


@settings(max_examples=100, deadline=None)
@given(json_values, st.data())
def test_any_value_in_any_field_is_loaded_or_refused(tmp_path_factory, value, data):
    """A sound file whose record has one field, at any depth, replaced by any JSON value."""
    kind = data.draw(st.sampled_from(["pact", "ftrl", "toolhop"]))
    record = json.loads({"pact": PACT, "ftrl": FTRL, "toolhop": TOOLHOP}[kind])
    place, container = (record, record) if kind != "toolhop" else (record[0], record)
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = value
    path = tmp_path_factory.mktemp("replaced") / "file.jsonl"
    path.write_text(json.dumps(container), encoding="utf-8")
    loaded_or_refused({"pact": JsonlTasks, "ftrl": FTRLTasks, "toolhop": ToolHopTasks}[kind](path).load)

"""Files of records: whatever is broken in one is told with file and line, and the others are read."""

import gzip
import json

import pytest

from pact_lightning.teacher.importers.calls import python_value
from pact_lightning.teacher.importers.reading import Place, Record, read_records, record_files
from pact_lightning.utils.json_lines import MAX_LINE_MB

GOOD = b'{"a": 1}\n'


def read(path):
    return [entry.value if isinstance(entry, Record) else (entry.reason, str(entry)) for entry in read_records(path)]


@pytest.mark.parametrize(
    ("line", "reason", "text"),
    [
        (b'{"a": ', "not JSON", "is not valid JSON: Expecting value at character 6"),
        (b'{"a": "\xff"}', "not UTF-8", "is not UTF-8: byte 7 of it is 0xff"),
        (b'{"a": NaN}', "not JSON", "NaN is not a JSON value"),
        (b'{"a": 1e999}', "not JSON", "holds a number that is too large"),
        (b'{"a": "\\ud800"}', "not JSON", "holds half of a character"),
        (b"[" * 200 + b"]" * 200, "not JSON", "is nested more than 100 deep"),
        (b"[" * 100_000, "not JSON", "is nested more than 100 deep"),
        (b'{"a": 1, "a": 2}', "not JSON", "holds an object with the key 'a' twice"),
        (b"1" * 5000, "not JSON", "holds an integer with too many digits"),
    ],
)
def test_a_broken_line_is_located_and_the_rest_is_read(tmp_path, line, reason, text):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    first, (found, sentence), last = read(path)
    assert first == last == {"a": 1}
    assert found == reason
    assert sentence.startswith(f"{path}, line 3: ")
    assert text in sentence


def test_a_line_that_is_too_long_is_not_read(tmp_path):
    limit = MAX_LINE_MB << 20
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b'"' + b"x" * limit + b'"\n' + GOOD)
    first, (reason, sentence), last = read(path)
    assert (first, last, reason) == ({"a": 1}, {"a": 1}, "line too long")
    assert sentence.startswith(f"{path}, line 2: is longer than 64 MiB")
    path.write_bytes(b'"' + b"x" * (limit - 2) + b'"')
    assert len(read(path)[0]) == limit - 2, "just short enough"


def test_a_torn_gz_file(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    lines = b"".join(b'{"a": "%d"}\n' % (i * 7919) for i in range(5000))
    whole = gzip.compress(lines)
    path.write_bytes(whole)
    assert len(read(path)) == 5000
    path.write_bytes(whole[: len(whole) // 2])
    *records, (reason, _) = read(path)
    assert (reason, records[0]) == ("damaged file", {"a": "0"})
    path.write_bytes(b"no gzip at all")
    assert [reason for reason, _ in read(path)] == ["damaged file"]


def test_arrays_and_byte_order_marks(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": 1}, 2], indent=1), encoding="utf-8-sig")
    entries = list(read_records(path))
    assert [entry.value for entry in entries] == [{"a": 1}, 2]
    assert str(entries[1].place) == f"{path}, record 2"
    lines = tmp_path / "y.jsonl"
    lines.write_text('{"a": 1}\r\n\r\n{"a": 2}', encoding="utf-8-sig")
    assert read(lines) == [{"a": 1}, {"a": 2}]


def test_a_single_object_is_one_record(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('\n {"a": [\n1]}\n', encoding="utf-8-sig")
    (record,) = read_records(path)
    assert (record.value, record.place) == ({"a": [1]}, Place(path, 1, "record"))
    for text, problem in (
        ('{"a": 1}\n{"a": 2}', "something follows the value; if this is JSON Lines, rename it to end in .jsonl"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ('{"a": ', "is not valid JSON: Expecting value"),
        ("", "is not valid JSON: Expecting value"),
    ):
        path.write_text(text, encoding="utf-8")
        ((reason, sentence),) = read(path)
        assert (reason, problem in sentence) == ("not JSON", True)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (b"NaN", "NaN is not a JSON value"),
        (b'{"a": 1,\n"a": 2}', "the key 'a' twice"),
        (b'["\\ud800"]', "half of a character"),
        (b"1e999", "a number that is too large"),
        (b"[" * 200 + b"]" * 200, "is nested more than 100 deep"),
    ],
)
def test_an_item_that_cannot_be_used_is_located_and_the_rest_is_read(tmp_path, item, text):
    path = tmp_path / "x.json"
    path.write_bytes(b"[\n1,\n" + item + b",\n2]")
    first, (reason, sentence), last = read(path)
    assert (first, last, reason) == (1, 2, "not JSON")
    assert sentence.startswith(f"{path}, record 2: ")
    assert text in sentence


@pytest.mark.parametrize(
    ("rest", "line", "reason", "text"),
    [
        (b"3]", 4, "not JSON", "is not valid JSON: Expecting ',' delimiter at character 0"),
        (b"", 4, "not JSON", "is not valid JSON: Expecting ',' delimiter at character 0"),
        (b",\n{]", 5, "not JSON", "is not valid JSON: Expecting property name"),
        (b"\n\xc3\xbc\xff]", 5, "not UTF-8", "is not UTF-8: byte 2 of it is 0xff"),
        (b",\n" + b"1" * 5000 + b"]", 1, "not JSON", "the file holds an integer with too many digits"),
        (b",\n[" + b"[" * 100_000, 1, "not JSON", "the file is nested more than 100 deep"),
    ],
)
def test_an_array_that_is_no_json_is_one_problem_with_its_line(tmp_path, rest, line, reason, text):
    path = tmp_path / "x.json"
    path.write_bytes(b'[\n{"a": 1},\n2\n' + rest)
    ((found, sentence),) = read(path)
    assert (found, sentence.startswith(f"{path}, line {line}: ")) == (reason, True)
    assert text in sentence


def test_a_torn_gz_array_is_one_problem(tmp_path):
    path = tmp_path / "x.json.gz"
    items = [i * 7919 for i in range(50_000)]
    whole = gzip.compress(json.dumps(items, indent=0).encode())
    path.write_bytes(whole)
    assert read(path) == items
    for raw, words in ((whole[: len(whole) // 2], "ends too early"), (whole[:-8] + b"\0" * 8, "is damaged")):
        path.write_bytes(raw)
        ((reason, sentence),) = read(path)
        assert (reason, words in sentence) == ("damaged file", True)


def test_python_notation():
    assert python_value("{'a': (1, None), 2: 'x'}") == {"a": [1, None], "2": "x"}
    for text in ("{'a': 1, 'a': 2}", "[{1: {'b': 1, 'b': 1}}]", "{1: 2, '1': 3}", "{'a': {1, 2}}", "x", "[" * 300):
        assert python_value(text) is None


def test_which_files_are_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file"):
        record_files(tmp_path)
    for name in ("b.jsonl", "a.json", "c.jsonl.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in record_files(tmp_path)] == ["a.json", "b.jsonl", "c.jsonl.gz"]
    with pytest.raises(ValueError, match="its name must end in"):
        record_files(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        record_files(tmp_path / "d.jsonl")

"""Files of records: whatever is broken in one is told with file and line, and the others are read."""

import gzip
import json

import pytest

from pact_lightning.traces.importers import reading
from pact_lightning.traces.importers.json_text import check_storable, load_json
from pact_lightning.traces.importers.reading import Problem, Record, read_records, record_files

GOOD = b'{"a": 1}\n'


def read(path):
    return [entry.value if isinstance(entry, Record) else (entry.reason, str(entry)) for entry in read_records(path)]


@pytest.mark.parametrize(
    ("line", "reason", "text"),
    [
        (b'{"a": ', "not JSON", "is not valid JSON: Expecting value at character 6"),
        (b'{"a": "\xff"}', "not UTF-8", "is not UTF-8: byte 7 of the line is 0xff"),
        (b'{"a": NaN}', "not JSON", "NaN is no JSON value"),
        (b'{"a": 1e999}', "not JSON", "holds a number that is too large"),
        (b'{"a": "\\ud800"}', "not JSON", "holds half of a character"),
        (b"[" * 200 + b"]" * 200, "not JSON", "is nested more than 100 levels deep"),
        (b"[" * 100_000, "not JSON", "is nested more than 100 levels deep"),
        (b"1" * 5000, "not JSON", "holds a number of 5000 digits"),
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
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b'"' + b"x" * reading.MAX_LINE_BYTES + b'"\n' + GOOD)
    first, (reason, sentence), last = read(path)
    assert (first, last, reason) == ({"a": 1}, {"a": 1}, "line too long")
    assert sentence.startswith(f"{path}, line 2: is longer than 10,000,000 bytes")
    path.write_bytes(b'"' + b"x" * (reading.MAX_LINE_BYTES - 2) + b'"')
    assert len(read(path)[0]) == reading.MAX_LINE_BYTES - 2, "just short enough"


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
    path.write_text(json.dumps([{"a": 1}, 2]), encoding="utf-8-sig")
    entries = list(read_records(path))
    assert [entry.value for entry in entries] == [{"a": 1}, 2]
    assert str(entries[1].place) == f"{path}, record 2"
    path.write_text('[{"a": 1}', encoding="utf-8")
    (problem,) = read_records(path)
    assert isinstance(problem, Problem)
    lines = tmp_path / "y.jsonl"
    lines.write_text('{"a": 1}\r\n\r\n{"a": 2}', encoding="utf-8-sig")
    assert read(lines) == [{"a": 1}, {"a": 2}]


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


def test_what_can_be_stored():
    assert load_json('{"a": [1, 2.5, "ü", null, true]}') == {"a": [1, 2.5, "ü", None, True]}
    with pytest.raises(ValueError, match="holds what JSON cannot"):
        check_storable({"a": {1, 2}})

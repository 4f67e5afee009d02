"""Files are written whole or not at all."""

import gzip
import json
import os
import stat
import threading

import pytest

from pact_lightning.utils.files import whole_file, write_json, write_json_lines


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "trajectories" / "phase-0001.jsonl"
    records = [{"text": "größe 東京"}, {"text": "line\nbreak"}]
    write_json_lines(path, records)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == records

    def broken():
        yield {"text": "new"}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json_lines(path, broken())
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == records
    write_json_lines(path, records[:1])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "a" / "x.txt"
    with whole_file(path) as file:
        file.write("größe\n")
        assert [entry.name for entry in path.parent.iterdir()] == ["x.txt.partial"]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]
    assert path.read_text(encoding="utf-8") == "größe\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def interrupted():
        with whole_file(path) as file:
            file.write("{")
            raise error

    with pytest.raises(error):
        interrupted()
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": {1}})
    assert list(tmp_path.iterdir()) == []


def test_compressed_by_name(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    write_json_lines(path, [{"a": "ü"}, {"b": 2}])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert file.read() == '{"a": "ü"}\n{"b": 2}\n'


def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text(encoding="utf-8")))
    reader.start()
    write_json(path, {"a": 1})
    reader.join()
    assert json.loads(read[0]) == {"a": 1}
    assert stat.S_ISFIFO(path.stat().st_mode)

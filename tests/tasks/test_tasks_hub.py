"""Data sets as tasks: local folders in every shape that tables give to nested rows, and hubs that cannot be reached."""

import json
import logging
import sys

import pytest
from toolhop_rows import ROW as TOOLHOP_ROW

from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.hub import HubError, HubTasks, without_nulls
from pact_lightning.tasks.jsonl import write_jsonl
from pact_lightning.tasks.record import task_to_json
from pact_lightning.tasks.toolhop.tasks import toolhop_task
from pact_lightning.types.task import TaskSource
from pact_lightning.utils.errors import TaskFileError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TASKS = [make_task("train", index) for index in range(4)]
FTRL_ROW = {
    "messages": [{"role": "user", "content": "How long?"}],
    "tools": json.dumps([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
    "codes": json.dumps({"f": "def f(x): return x"}),
    "unsolved_set": json.dumps({"f": ["1"]}),
    "ground_truth": [{"name": "f", "parameters": {"x": 1}}],
    "answer": "1",
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def test_a_folder_of_task_files(folder):
    write_jsonl(folder / "train.jsonl", TASKS)
    source = HubTasks(str(folder))
    assert isinstance(source, TaskSource)
    assert list(source.load()) == TASKS
    assert list(HubTasks(str(folder), limit=2).load()) == TASKS[:2]
    assert list(HubTasks(str(folder), "train[1:3]").load()) == TASKS[1:3]


def test_a_parquet_file_with_json_in_strings(folder):
    records = [task_to_json(task) for task in TASKS]
    rows = [
        {key: value if key in ("id", "kind") else json.dumps(value) for key, value in record.items()}
        for record in records
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    assert list(HubTasks(str(folder)).load()) == TASKS


def test_a_parquet_file_of_columns_has_its_nulls_taken_out(folder, caplog):
    """Old tables have no JSON type: every object has the keys of all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([task_to_json(task) for task in TASKS])
    pq.write_table(table, folder / "train.parquet")
    arguments = {name for row in table.to_pylist() for call in row["reference"]["calls"] for name in call["arguments"]}
    assert len(arguments) > 1, "the table mixes calls of several tools"
    with caplog.at_level(logging.INFO, logger="pact_lightning"):
        assert list(HubTasks(str(folder)).load()) == TASKS
    assert "nulls that the table put into objects were taken out" in caplog.text


def test_nulls_are_counted_where_a_table_put_them_and_nowhere_else():
    json_type, text = datasets.Value("string"), datasets.Value("string")
    features = datasets.Features({"a": {"x": text, "y": text}, "l": datasets.List({"z": text}), "j": json_type})
    row = {"a": {"x": "1", "y": None}, "l": [{"z": None}, {"z": "2"}], "j": {"kept": None}}
    assert without_nulls(row, features) == ({"a": {"x": "1"}, "l": [{}, {"z": "2"}], "j": {"kept": None}}, 2)


def test_ftrl_and_toolhop_rows(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps(FTRL_ROW) + "\n" for _ in range(2)))
    first, second = HubTasks(str(folder), format="ftrl", format_args={"name": "mine", "system_prompt": None}).load()
    assert (first.id, second.id) == ("mine-0", "mine-1")
    assert first.reference.calls == ({"name": "f", "arguments": {"x": 1}},)
    assert [message["role"] for message in first.prompt.messages] == ["user"]
    (folder / "toolhop").mkdir()
    (folder / "toolhop" / "test.jsonl").write_text(json.dumps(TOOLHOP_ROW) + "\n")
    (task,) = HubTasks(str(folder / "toolhop"), "test", format="toolhop").load()
    assert task == toolhop_task(0, TOOLHOP_ROW)


def test_a_malformed_row_is_named(folder):
    records = [task_to_json(task) for task in TASKS[:2]]
    records[1]["messages"][-1]["role"] = "assistant"
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(TaskFileError, match=r"data \(train\), row 1: field `messages\[1\]\.role`: must be"):
        HubTasks(str(folder)).load()
    (folder / "train.jsonl").write_text("".join(json.dumps(records[0]) + "\n" for _ in range(2)))
    with pytest.raises(TaskFileError, match="row 1: field `id`: 'train-0' is already the id of row 0"):
        HubTasks(str(folder)).load()


def test_what_cannot_be_loaded_is_told_in_one_sentence(folder, monkeypatch):
    write_jsonl(folder / "train.jsonl", TASKS)
    empty = folder / "empty"
    empty.mkdir()
    for name, split in (("nobody/nothing", "train"), (str(folder), "holdout"), (str(empty), "train")):
        with pytest.raises(HubError, match="cannot be loaded: ") as caught:
            HubTasks(name, split).load()
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'pact-lightning\[hub\]'"):
        HubTasks(str(folder)).load()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"format": "csv"}, "there is no format 'csv'; use one of pact, ftrl, toolhop"),
        ({"format_args": {"name": "x"}}, "the format pact has no argument 'name'; known: none"),
        ({"format": "ftrl", "format_args": {"names": "x"}}, "known: distractors, system_prompt, name"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_loaded(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        HubTasks("nobody/nothing", **arguments)

"""The published JSON Schema of task files: generated from the reader's models, and as strict as the reader."""

import copy
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.fields import TaskRecord
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.utils.errors import TaskFieldError

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
SCHEMA = json.loads((DOCS / "task.schema.json").read_text(encoding="utf-8"))
EXAMPLE = json.loads(
    re.search(
        r"<!-- example -->\n```json\n(.*?)^```$", (DOCS / "tasks.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )[1]
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_schema_is_the_generated_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert TaskRecord.model_json_schema() == SCHEMA, "write it anew by the command in docs/tasks.md"


def test_example_of_the_docs():
    VALIDATOR.validate(EXAMPLE)
    task = task_from_json(EXAMPLE)
    assert task.trace.turns[1].reasoning == "One lamp costs 2500. What is left is the total of two."
    assert task_from_json(task_to_json(task)) == task


def test_written_tasks_satisfy_the_schema():
    for task in BundledTasks("train", 30).load():
        VALIDATOR.validate(json.loads(json.dumps(task_to_json(task))))


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        # What stands in these is the task's own business, for the schema and for the reader.
        if key not in ("arguments", "init_args", "metadata", "parameters"):
            yield from _paths(inner, (*path, key))


def _without(record, path):
    changed = copy.deepcopy(record)
    del _parent(changed, path)[path[-1]]
    return changed


def _with(record, path, value):
    changed = copy.deepcopy(record)
    _parent(changed, path)[path[-1]] = value
    return changed


def _parent(record, path):
    for step in path[:-1]:
        record = record[step]
    return record


def _read(record):
    try:
        task_from_json(record)
    except TaskFieldError:
        return False
    return True


PATHS = [path for path in _paths(EXAMPLE) if path]


@pytest.fixture(autouse=True)
def shop(monkeypatch):
    """The example's environment, which is asked for its tools where the example's are left out."""
    module = ModuleType("shop")
    methods = dict.fromkeys(("reset", "call"), lambda self, *given: None)
    methods["__init__"] = lambda self, prices=None: None
    module.Shop = type("Shop", (), {**methods, "tools": EXAMPLE["tools"]})
    monkeypatch.setitem(sys.modules, "shop", module)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_reader_and_schema_refuse_the_same_types_and_omissions(path):
    """Every field of the example in turn is given a wrong type, null, or left out."""
    if isinstance(path[-1], str):
        changed = [_without(EXAMPLE, path), _with(EXAMPLE, path, None), _with(EXAMPLE, path, 1.5)]
    else:
        changed = [_with(EXAMPLE, path, None), _with(EXAMPLE, path, 1.5)]
    for record in changed:
        assert VALIDATOR.is_valid(record) == _read(record), record


@pytest.mark.parametrize(
    "path", [(), *(path for path in PATHS if isinstance(_parent({"": EXAMPLE}, ("", *path, "")), dict))], ids=str
)
def test_reader_and_schema_agree_on_unknown_fields(path):
    record = _with(EXAMPLE, (*path, "surprise"), "!")
    open_to_more = path[:1] in (("messages",), ("tools",)) or path[-1:] in (
        ("arguments",),
        ("init_args",),
        ("metadata",),
        ("parameters",),
    )
    assert VALIDATOR.is_valid(record) == _read(record) == open_to_more


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("id",), ""),
        (("messages",), []),
        (("messages", 0, "role"), "assistant"),
        (("tools", 0, "function", "name"), ""),
        (("environment", "class_path"), "Shop"),
        (("trace", "turns", 0, "calls"), []),
        (("trace", "turns", 0, "pattern"), "guess"),
        (("trace", "turns", 0, "chunks"), [{"text": "both"}]),
        (("trace", "turns", 1, "chunks", 0, "type"), "musing"),
    ],
)
def test_reader_and_schema_refuse_the_same_values(path, value):
    record = _with(EXAMPLE, path, value)
    assert not VALIDATOR.is_valid(record)
    assert not _read(record)

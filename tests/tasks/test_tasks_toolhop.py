"""ToolHop rows as tasks. The rows are written for these tests, in the upstream format."""

import gzip
import json

import pytest
from toolhop_rows import LENGTH, RIVER, ROW, tool

from pact_lightning.environments.sandbox.code_tools import FAILURE_PREFIX
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.tasks.toolhop.tasks import SYSTEM_PROMPT, ToolHopTasks
from pact_lightning.types.task import Reference, SubAnswer, TaskSource
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import scan_json_list


@pytest.fixture
def rows(tmp_path):
    def write(*records, indent=None):
        path = tmp_path / "ToolHop.json"
        path.write_text(json.dumps(list(records), indent=indent), encoding="utf-8")
        return path

    return write


def test_a_row_becomes_a_task(rows):
    source = ToolHopTasks(rows(ROW))
    assert isinstance(source, TaskSource)
    (task,) = source.load()
    assert (task.id, task.kind, task.metadata) == ("toolhop-7", "toolhop", {"index": 0})
    assert [dict(message) for message in task.prompt.messages] == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": ROW["question"]},
    ]
    assert task.prompt.tool_names == ("river_finder", "river_length")
    assert [dict(entry) for entry in task.prompt.tools] == [
        {"type": "function", "function": ROW["tools"][RIVER]},
        {"type": "function", "function": ROW["tools"][LENGTH]},
    ]
    expected = (SubAnswer("river_finder", "Danube"), SubAnswer("river_length", "2850.0"))
    assert task.reference == Reference("2850.0", (), expected)
    assert task.trace is None
    assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task


def test_its_tools_run_in_the_sandbox(rows):
    (task,) = ToolHopTasks(rows(ROW)).load()
    environment = task.prompt.environment.build()
    environment.reset(task.prompt, 0)
    assert environment.call("river_finder", {"city": "Vienna"}).text == "Danube"
    assert environment.call("river_length", {"river": "Danube"}).text == "2850.0"
    failed = environment.call("river_finder", {"city": "Rome"})
    assert failed.error
    assert failed.text == f"{FAILURE_PREFIX} river_finder: 'Rome'"


def test_rows_are_chosen_and_named(rows, tmp_path):
    file = rows(*({**ROW, "id": f"q{number}"} for number in range(4)))

    def ids(**choice):
        return [task.id for task in ToolHopTasks(file, **choice).load()]

    assert ids() == ["toolhop-q0", "toolhop-q1", "toolhop-q2", "toolhop-q3"]
    assert ids(indices=[3, 1], limit=1) == ["toolhop-q1"]
    assert ids(name="x", limit=1) == ["x-q0"]
    with pytest.raises(ValueError, match=r"indices names row 4, but .* has 4 rows"):
        ids(indices=[4])
    packed = tmp_path / "rows.json.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert ToolHopTasks(packed).load() == ToolHopTasks(file).load()
    (bare,) = ToolHopTasks(file, system_prompt=None, limit=1).load()
    assert [message["role"] for message in bare.prompt.messages] == ["user"]


def test_a_tool_that_serves_two_questions_is_offered_once(rows):
    again = "And which one flows through Bonn?"
    row = {
        **ROW,
        "sub_task": {**ROW["sub_task"], again: "Rhine"},
        "tools": {**ROW["tools"], again: ROW["tools"][RIVER]},
        "functions": [*ROW["functions"], ROW["functions"][0]],
    }
    (task,) = ToolHopTasks(rows(row)).load()
    assert task.prompt.tool_names == ("river_finder", "river_length")
    assert task.reference.sub_answers[-1] == SubAnswer("river_finder", "Rhine")
    other = {**row, "functions": [*ROW["functions"], "def river_finder(city):\n    return 'Rhine'"]}
    with pytest.raises(TaskFileError, match="is the name of another tool as well"):
        ToolHopTasks(rows(other)).load()


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"id": None}, "id", "must be a string or an integer, got NoneType"),
        ({"question": 3}, "question", "must be a string, got int"),
        ({"answer": 2850.0}, "answer", "must be a string, got float"),
        ({"tools": []}, "tools", "must be an object, got list"),
        ({"tools": {RIVER: "x", LENGTH: "y"}}, f"tools.{RIVER}", "must be an object, got str"),
        ({"tools": {RIVER: {"name": 1}, LENGTH: {}}}, f"tools.{RIVER}.name", "must be a string, got int"),
        ({"functions": ROW["functions"][:1]}, "functions", "has 1 sources for 2 tools"),
        ({"functions": [ROW["functions"][0], None]}, "functions[1]", "must be a string, got NoneType"),
        ({"sub_task": {**ROW["sub_task"], "Why?": "x"}}, "sub_task.Why?", "has no tool under the same sub-question"),
        ({"sub_task": {RIVER: 1}}, f"sub_task.{RIVER}", "must be a string, got int"),
        (
            {"tools": {RIVER: {**tool("river_finder", "city"), "parameters": None}, LENGTH: tool("length", "of")}},
            "tools[0].function.parameters",
            "must be an object, got NoneType",
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_malformed_row_is_named_by_item_and_field(rows, change, field, problem, indent):
    file = rows({**ROW, "id": 1}, {**ROW, **change}, indent=indent)
    with pytest.raises(TaskFileError) as caught:
        ToolHopTasks(file).load()
    assert str(caught.value).startswith(f"{file}, item 2: field `{field}`: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("field", ["id", "question", "answer", "sub_task", "tools", "functions"])
def test_a_missing_field_is_named(rows, field):
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(TaskFileError, match=rf"item 1: field `{field}`: is missing"):
        ToolHopTasks(rows(row)).load()


def test_two_rows_of_one_id_are_refused(rows):
    with pytest.raises(TaskFileError, match="item 2: field `id`: 'toolhop-7' is already the id of item 1"):
        ToolHopTasks(rows(ROW, ROW, indent=1)).load()


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "is not valid JSON: Expecting value at character 0"),
        ('{"id": 1}', 1, "expected a JSON list of rows, found dict"),
        ("[\n{},\n{]", 3, r"is not valid JSON: Expecting property name .* at character 1"),
        ("[\n{}\n{}]", 3, "is not valid JSON: Expecting ',' delimiter at character 0"),
        ("[\n]\nx", 3, "something follows the value; if this is JSON Lines, rename it to end in .jsonl"),
    ],
)
def test_a_file_that_is_no_list_is_named_by_line(tmp_path, text, line, problem):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(TaskFileError, match=problem) as caught:
        list(scan_json_list(path))
    assert caught.value.line == line


def test_a_scan_goes_on_after_a_row_that_cannot_be_used(tmp_path):
    path = tmp_path / "rows.json"
    row, other = json.dumps(ROW), json.dumps({**ROW, "id": 8})
    path.write_text(f'[\n{row},\n{{"a": NaN}},\n{{"id": 1}},\n{other}]')
    scanned = list(ToolHopTasks(path).scan())
    assert [(entry.line, entry.task is not None) for entry in scanned] == [
        (1, True),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert str(scanned[1].errors[0]) == f"{path}, item 2: is not valid JSON: NaN is not a JSON value"
    with pytest.raises(TaskFileError, match="item 2"):
        ToolHopTasks(path).load()

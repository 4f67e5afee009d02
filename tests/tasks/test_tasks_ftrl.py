"""FTRL rows as tasks. The small rows are written for these tests; those marked ``shared`` are the real ones."""

import gzip
import json

import pytest

from pact_lightning.environments.sandbox.code_tools import CodeToolEnvironment
from pact_lightning.metrics.solve import SolveRate, executed_calls
from pact_lightning.tasks.ftrl.row import SYSTEM_PROMPT
from pact_lightning.tasks.ftrl.tasks import FTRLTasks, in_train
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.types.task import SubAnswer
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import RolloutTurn, Trajectory
from pact_lightning.utils.errors import TaskFileError

TOOLS = [
    {"type": "function", "function": {"name": "river", "description": "", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "length", "description": "", "parameters": {"type": "object"}}},
]
CODES = {
    "river": "def river(city):\n    return {'Vienna': 'Danube', 'Bonn': 'Rhine'}[city]",
    "length": "import math\ndef length(name):\n    return {'name': name, 'km': math.floor(2850.9)}",
}
ROW = {
    "messages": [{"role": "user", "content": "Use the tools.\nQuestion: How long is the river at Vienna?"}],
    "tools": json.dumps(TOOLS),
    "codes": json.dumps(CODES),
    "unsolved_set": json.dumps({"river": ["Danube"], "length": ["2,850"]}),
    "solve_rate": 0.5,
    "data_source": "self/multi_hop",
    "split": "test",
    "answer": "2,850",
}
CALLS = [
    {"name": "river", "arguments": {"city": "Vienna"}, "observation": "Danube", "answer": "Danube"},
    {"name": "length", "arguments": {"name": "Danube"}, "observation": '{"name": "Danube", "km": 2850}'},
]
KNOWN = {"index": 0, "question": "How long is the river at Vienna?", "calls": CALLS, "unsolved": []}


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path):
    return lambda *records: write(tmp_path / "rows.jsonl", *records)


@pytest.fixture
def known(tmp_path):
    return lambda *records: write(tmp_path / "known.jsonl", *records)


def test_a_row_becomes_a_task(rows):
    (task,) = FTRLTasks(rows(ROW)).load()
    assert task.id == "ftrl-0"
    assert task.kind == "self/multi_hop"
    assert task.metadata == {"index": 0, "split": "test", "solve_rate": 0.5}
    assert [dict(message) for message in task.prompt.messages] == [
        {"role": "system", "content": SYSTEM_PROMPT},
        ROW["messages"][0],
    ]
    assert list(task.prompt.tools) == TOOLS
    assert task.prompt.environment.init_args == {"codes": CODES, "tools": TOOLS}
    assert isinstance(task.prompt.environment.build(), CodeToolEnvironment)
    assert task.reference.answer == "2,850"
    assert task.reference.calls == ()
    assert task.reference.sub_answers == (SubAnswer("river", "Danube"), SubAnswer("length", "2,850"))
    assert task.trace is None


def test_the_system_prompt_asks_for_the_answer_tag_and_can_be_left_out(rows):
    assert "<answer>" in SYSTEM_PROMPT
    (own,) = FTRLTasks(rows(ROW), system_prompt="Mine.").load()
    assert own.prompt.messages[0] == {"role": "system", "content": "Mine."}
    (none,) = FTRLTasks(rows(ROW), system_prompt=None).load()
    assert [message["role"] for message in none.prompt.messages] == ["user"]


def test_known_calls_become_reference_and_trace(rows, known):
    (task,) = FTRLTasks(rows(ROW), reference_calls=known(KNOWN)).load()
    expected = tuple({"name": call["name"], "arguments": call["arguments"]} for call in CALLS)
    assert task.reference.calls == expected
    assert task.trace is not None
    assert [turn.calls for turn in task.trace.turns] == [(call,) for call in expected]
    assert [turn.responses for turn in task.trace.turns] == [(call["observation"],) for call in CALLS]
    assert {turn.reasoning for turn in task.trace.turns} == {""}
    assert task.trace.final is not None
    assert task.trace.final.answer == "<answer>2,850</answer>"
    assert task_from_json(task_to_json(task)) == task


def test_incomplete_known_calls_are_left_out(rows, known):
    incomplete = {**KNOWN, "unsolved": [["length", "2,850"]]}
    empty = {"index": 1, "calls": [], "unsolved": []}
    for task in FTRLTasks(rows(ROW, ROW), reference_calls=known(incomplete, empty)).load():
        assert task.reference.calls == ()
        assert task.trace is None


def test_ground_truth_is_the_reference_where_there_are_no_known_calls(rows, known):
    truth = [{"name": "river", "parameters": {"city": "Bonn"}}]
    for value in (truth, json.dumps(truth)):
        (task,) = FTRLTasks(rows({**ROW, "ground_truth": value})).load()
        assert task.reference.calls == ({"name": "river", "arguments": {"city": "Bonn"}},)
        assert task.trace is None
    (task,) = FTRLTasks(rows({**ROW, "ground_truth": truth}), reference_calls=known(KNOWN)).load()
    assert task.reference.calls[0]["arguments"] == {"city": "Vienna"}


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"tools": "[{]"}, "tools", "is not valid JSON"),
        ({"tools": "{}"}, "tools", "must be a list, got dict"),
        ({"codes": None}, "codes", "must be an object, got NoneType"),
        ({"codes": json.dumps({"river": CODES["river"]})}, "codes", "has no source for the tools length"),
        ({"codes": json.dumps({**CODES, "river": 3})}, "codes.river", "must be a string, got int"),
        ({"unsolved_set": '{"sea": ["x"]}'}, "reference.sub_answers[0].tool", "names the tool 'sea'"),
        ({"unsolved_set": '{"river": "x"}'}, "unsolved_set.river", "must be a list, got str"),
        ({"unsolved_set": '{"river": [1]}'}, "unsolved_set.river", "must be a string, got int"),
        ({"messages": "hi"}, "messages", "must be a list, got str"),
        ({"answer": 2850}, "answer", "must be a string, got int"),
        ({"ground_truth": [{"name": "river"}]}, "ground_truth[0].parameters", "must be an object"),
        ({"ground_truth": [{"name": "sea", "parameters": {}}]}, "reference.calls", "names the tool 'sea'"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(rows, change, field, problem):
    file = rows(ROW, "", {**ROW, **change})
    with pytest.raises(TaskFileError) as caught:
        FTRLTasks(file).load()
    assert (caught.value.path, caught.value.line, caught.value.field) == (file, 3, field)
    assert problem in str(caught.value)


@pytest.mark.parametrize("field", ["messages", "tools", "codes", "unsolved_set"])
def test_a_missing_field_is_named(rows, field):
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(TaskFileError, match=f"line 1: field `{field}`: is missing"):
        FTRLTasks(rows(row)).load()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**KNOWN, "index": "0"}, "known.jsonl, line 1: field `index`: must be an integer, got str"),
        ({**KNOWN, "calls": [{"name": "river"}]}, r"known.jsonl, line 1: field `calls\[0\].arguments`: must be"),
        ({**KNOWN, "calls": [{**CALLS[0], "observation": None}]}, r"field `calls\[0\].observation`: must be a string"),
        ({**KNOWN, "question": "How deep?"}, "rows.jsonl, line 1: field `messages`: line 1 of .* another question"),
        ({**KNOWN, "calls": [{**CALLS[0], "name": "sea"}]}, "rows.jsonl, line 1: .* names the tool 'sea'"),
        ({**KNOWN, "index": 1}, "known.jsonl names row 1, but .* has 1 rows"),
    ],
)
def test_malformed_or_foreign_known_calls_are_named(rows, known, record, message):
    with pytest.raises(ValueError, match=message):
        FTRLTasks(rows(ROW), reference_calls=known(record)).load()
    with pytest.raises(TaskFileError, match="line 2: field `index`: row 0 is already on line 1"):
        FTRLTasks(rows(ROW), reference_calls=known(KNOWN, KNOWN)).load()


def test_rows_are_chosen_by_index_split_and_limit(rows):
    file = rows(*({**ROW, "split": "test" if index % 2 else "train"} for index in range(6)))

    def ids(**choice):
        return [task.id for task in FTRLTasks(file, **choice).load()]

    assert ids(indices=[5, 0]) == ["ftrl-0", "ftrl-5"]
    assert ids(split="test") == ["ftrl-1", "ftrl-3", "ftrl-5"]
    assert ids(split="test", limit=2) == ["ftrl-1", "ftrl-3"]
    assert ids(limit=0) == []
    assert ids(name="x", indices=[2]) == ["x-2"]
    for wrong in (6, -1):
        with pytest.raises(ValueError, match=f"indices names row {wrong}, but .* has 6 rows"):
            ids(indices=[0, wrong])
    with pytest.raises(ValueError, match="subset must be"):
        ids(subset="dev")
    with pytest.raises(ValueError, match="train_fraction must be"):
        ids(train_fraction=1.5)


def test_distractors_are_dropped_and_needed_tools_stay(rows):
    extra = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("d1", "d2")
    ]
    codes = {**CODES, "d1": "def d1(): pass", "d2": "def d2(): pass"}
    tools = [extra[0], TOOLS[0], extra[1], TOOLS[1]]
    file = rows({**ROW, "tools": json.dumps(tools), "codes": json.dumps(codes)})

    def names(distractors):
        return FTRLTasks(file, distractors=distractors).load()[0].prompt.tool_names

    assert names(0) == ("river", "length")
    assert names(1) == ("d1", "river", "length")
    assert names(2) == names(9) == names(None) == ("d1", "river", "d2", "length")
    with pytest.raises(ValueError, match="distractors is a number of tools"):
        names(-1)


def test_the_two_sides_part_the_rows_and_never_move(rows):
    file = rows(*[ROW] * 40)
    train, validation = ([task.id for task in FTRLTasks(file, subset=side).load()] for side in ("train", "validation"))
    assert set(train) | set(validation) == {f"ftrl-{index}" for index in range(40)}
    assert not set(train) & set(validation)
    # A longer file leaves every row on its side, and so does a larger share for the rows that were in train.
    assert [task.id for task in FTRLTasks(rows(*[ROW] * 60), subset="train").load()][: len(train)] == train
    assert all(in_train(index, 0.9) for index in range(500) if in_train(index, 0.5))
    assert [index for index in range(20) if not in_train(index, 0.8)] == [0, 5, 6, 10, 18]
    assert not any(in_train(index, 0.0) for index in range(500))
    assert all(in_train(index, 1.0) for index in range(500))
    share = sum(in_train(index, 0.8) for index in range(5000)) / 5000
    assert abs(share - 0.8) < 0.03  # five standard deviations


def replay(task):
    """The rollout that makes the reference calls, in the real sandbox."""
    env = task.prompt.environment.build()
    env.reset(task.prompt, 0)
    results = [env.call(call["name"], call["arguments"]) for call in task.reference.calls]
    turns = [
        RolloutTurn("", parsed=(ParsedCall(call),), responses=(result.text,), errors=(result.error,))
        for call, result in zip(task.reference.calls, results, strict=True)
    ]
    return Trajectory(task.id, 0, (), turns=turns)


def test_known_calls_replay_in_the_sandbox(rows, known):
    (task,) = FTRLTasks(rows(ROW), reference_calls=known(KNOWN)).load()
    trajectory = replay(task)
    assert executed_calls(trajectory) == [(call["name"], call["observation"]) for call in CALLS]
    metric = SolveRate()
    metric.update(trajectory, task.reference)
    assert {key: float(value) for key, value in metric.compute().items()} == {
        "solve_p": 1.0,
        "solve_r": 1.0,
        "solve_f1": 1.0,
    }


@pytest.mark.shared
def test_the_real_rows_load(shared_data):
    folder = shared_data / "ftrl"
    tasks = FTRLTasks(folder / "tasks.jsonl.gz", reference_calls=folder / "reference_calls.jsonl").load()
    with gzip.open(folder / "tasks.jsonl.gz", "rt") as file:
        raw = [json.loads(line) for line in file]
    assert len(tasks) == len(raw) == 100
    for task, row in zip(tasks, raw, strict=True):
        unsolved = json.loads(row["unsolved_set"])
        assert len(task.reference.sub_answers) == sum(map(len, unsolved.values()))
        assert set(task.prompt.tool_names) == set(json.loads(row["codes"]))
        assert task.kind == row["data_source"]
        assert task_from_json(task_to_json(task)) == task
    assert sum(task.trace is not None for task in tasks) == 84


@pytest.mark.shared
def test_every_complete_real_reference_replays_to_full_marks(shared_data):
    folder = shared_data / "ftrl"
    tasks = FTRLTasks(folder / "tasks.jsonl.gz", reference_calls=folder / "reference_calls.jsonl").load()
    metric = SolveRate()
    differing = []
    for task in tasks:
        if task.trace is None:
            continue
        trajectory = replay(task)
        metric.update(trajectory, task.reference)
        recorded = [(turn.calls[0]["name"], turn.responses[0]) for turn in task.trace.turns]
        got = executed_calls(trajectory)
        differing += [(task.id, a, b) for a, b in zip(got, recorded, strict=True) if a != b]
    assert differing == []
    assert int(metric.count) == 84
    assert float(metric.compute()["solve_f1"]) == 1.0

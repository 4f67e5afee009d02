"""Known calls made by replay: what they return is what the sandbox returns, and unsolved rows are told."""

import gzip
import json

import pytest

from pact_lightning.tasks.ftrl.tasks import FTRLTasks, main

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}
    for name in ("river", "length")
]
ROW = {
    "messages": [{"role": "user", "content": "Question: How long is the river at Vienna?"}],
    "tools": json.dumps(TOOLS),
    "codes": json.dumps(
        {
            "river": "def river(city):\n    return {'Vienna': 'Danube', 'Bonn': 'Rhine'}[city]",
            "length": "def length(name):\n    return {'name': name, 'km': 2850}",
        }
    ),
    "unsolved_set": json.dumps({"river": ["Danube"], "length": ["2,850"]}),
    "answer": "2,850",
}
RIVER = {"name": "river", "parameters": {"city": "Vienna"}}
LENGTH = {"name": "length", "parameters": {"name": "Danube"}}


def test_replayed_calls_become_traces_where_they_solve_the_row(tmp_path, capsys):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "calls.jsonl"
    wrong = {"name": "river", "parameters": {"city": "Paris"}}
    solutions = [[RIVER, LENGTH], [wrong, LENGTH], None]
    rows.write_text("\n".join(json.dumps(ROW | {"ground_truth": solution}) for solution in solutions))
    assert main([str(rows), str(out)]) == 0
    assert capsys.readouterr().out == "3 rows: 2 with calls, of which 1 solve their row\n"
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == {
        "index": 0,
        "calls": [
            {"name": "river", "arguments": {"city": "Vienna"}, "observation": "Danube"},
            {"name": "length", "arguments": {"name": "Danube"}, "observation": '{"name": "Danube", "km": 2850}'},
        ],
        "unsolved": [],
    }
    assert (second["index"], second["unsolved"]) == (1, ["Danube"])
    assert second["calls"][0]["observation"] == "an error occured when call river: 'Paris'"

    tasks = FTRLTasks(rows, reference_calls=out).load()
    assert [task.trace is not None for task in tasks] == [True, False, False]
    assert [turn.responses for turn in tasks[0].trace.turns] == [("Danube",), ('{"name": "Danube", "km": 2850}',)]


@pytest.mark.shared
def test_real_rows_replay_to_the_known_responses(shared_data, tmp_path):
    with (shared_data / "ftrl" / "reference_calls.jsonl").open(encoding="utf-8") as file:
        known = [json.loads(line) for line in file]
    known = {line["index"]: line["calls"] for line in known if not line["unsolved"]}
    wanted = sorted(known)[::10]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "calls.jsonl"
    with gzip.open(shared_data / "ftrl" / "tasks.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    solved = [
        lines[index]
        | {"ground_truth": [{"name": call["name"], "parameters": call["arguments"]} for call in known[index]]}
        for index in wanted
    ]
    rows.write_text("\n".join(map(json.dumps, solved)))
    assert main([str(rows), str(out)]) == 0
    for index, line in zip(wanted, out.read_text().splitlines(), strict=True):
        replayed = json.loads(line)
        assert replayed["unsolved"] == []
        assert [call["observation"] for call in replayed["calls"]] == [call["observation"] for call in known[index]]


def test_a_missing_file_is_told_in_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "absent.jsonl"), str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()

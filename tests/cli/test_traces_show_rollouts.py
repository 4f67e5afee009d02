"""``traces show`` on the rollouts of a run: whatever the policy wrote is shown, with rewards and advantages."""

import copy
import json

import pytest
from rollout_player import log, play
from test_user_turns import prompt_of

from pact_lightning.cli.main import main
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.tasks.record import task_to_json
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace, ExpertTurn

MALFORMED = '<tool_call>\n{"name": "log", "arguments": [bold]}\n</tool_call>'


def shown(capsys, *arguments):
    """Exit status, what was printed, and the error."""
    status = 0
    try:
        main(["traces", "show", *map(str, arguments)])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def rollouts(tmp_path, monkeypatch):
    """Three samples of one task and one of another, the first with a malformed call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    renderer = ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))
    prompt = prompt_of(UserTurn("And now?"))
    thought = "<think>\nLog it.\n</think>\n\n" + log("x")
    records = []
    for turns in ([MALFORMED, "sorry", thought, "second"], [thought, "first", "second"], ["<think>\nnever", "second"]):
        (rollout,) = play(renderer, [prompt], [*turns])[0][0]
        rewards = [0.25] * len(rollout.turns)
        advantages = [-1.5] * len(rollout.turns)
        record = trajectory_record(prompt, rollout, rewards=rewards, advantages=advantages, phase=3)
        records.append(json.loads(json.dumps(record)) | {"sample": len(records)})
    records.append(copy.deepcopy(records[1]) | {"task_id": "another", "sample": 0})
    path = tmp_path / "phase-0003.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, prompt, records


def test_a_malformed_call_is_shown_with_all_numbers(rollouts, capsys):
    path, prompt, records = rollouts
    status, out, _ = shown(capsys, path)
    assert status == 0
    assert f"rollout of {prompt.id}, sample 0, phase 3: {records[0]['stop_reason']}" in out
    assert "turn 0, reward +0.250, advantage -1.500" in out
    assert '{"name": "log", "arguments": [bold]}' in out, "the call as it was written"
    assert "malformed call: The tool call is not valid JSON" in out
    assert "response, which failed: " in out
    assert "answer: sorry" in out
    assert "user: And now?" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│ ")]
    samples = [row for row in rows if len(row) == 7]
    assert [(row[0], row[1], row[5]) for row in samples] == [("0", "3", "1"), ("1", "3", "0"), ("2", "3", "0")]


def test_a_sample_is_chosen(rollouts, capsys):
    path, prompt, records = rollouts
    status, out, _ = shown(capsys, path.parent, "--id", prompt.id, "--sample", 1)
    assert status == 0
    assert "reasoning: Log it." in out
    assert 'call: log {"' in out
    assert "response of log: " in out
    assert (
        f"rollout of another, sample 0, phase 3: {records[1]['stop_reason']}"
        in shown(capsys, path, "--id", "another")[1]
    )
    status, _, error = shown(capsys, path, "--id", prompt.id, "--sample", 7)
    assert (status, f"holds no sample 7 of {prompt.id!r}; its samples are 0, 1, 2" in error) == (2, True)
    status, _, error = shown(capsys, path, "--id", "nobody")
    assert (status, f"holds no rollout of 'nobody'; it holds {prompt.id!r}, 'another'" in error) == (2, True)


@pytest.mark.parametrize("columns", ["200", "100"])
def test_the_trace_beside_it(rollouts, capsys, monkeypatch, columns):
    path, prompt, _ = rollouts
    monkeypatch.setenv("COLUMNS", columns)
    reasoning = "The user asks to log it."
    call = {"name": "log", "arguments": {"line": "x"}}
    turn = ExpertTurn(segment_reasoning(reasoning, [call]), (call,), ("ok",))
    tools = ({"type": "function", "function": {"name": "log", "parameters": {"type": "object"}}},)
    record = task_to_json(Task(prompt, trace=ExpertTrace((turn,)))) | {"tools": list(tools)}
    (path.parent / "tasks.json.jsonl").write_text(json.dumps(record))
    status, out, _ = shown(capsys, path, "--tasks", path.parent / "tasks.json.jsonl")
    assert status == 0
    beside = any("rollout of" in line and f"trace {prompt.id}" in line for line in out.splitlines())
    assert beside == (columns == "200")
    assert f"trace {prompt.id}" in out
    assert reasoning in out
    assert (
        "holds no trace of 'another'"
        in shown(capsys, path, "--id", "another", "--tasks", path.parent / "tasks.json.jsonl")[1]
    )


def test_broken_records_and_other_files(rollouts, capsys):
    path, prompt, records = rollouts
    broken = [
        records[0] | {"messages": [1]},
        records[0] | {"turn_rewards": ["x"]},
        records[0] | {"messages": [{"role": "assistant", "tool_calls": [1], "malformed_calls": 3, "content": [2]}]},
    ]
    path.write_text("no JSON\n" + "".join(json.dumps(record) + "\n" for record in broken))
    status, out, _ = shown(capsys, path)
    assert (status, f"rollout of {prompt.id}, sample 0" in out) == (0, True)
    (path.parent / "empty.jsonl").write_text("")
    assert shown(capsys, path.parent / "empty.jsonl")[0] == 2
    (path.parent / "in.jsonl").write_text(json.dumps({"messages": []}))
    status, _, error = shown(capsys, path.parent / "in.jsonl", "--sample", 1)
    assert (status, "contains no rollouts; sample and tasks are options for the files in a run" in error) == (2, True)
    assert shown(capsys, path.parent / "missing.jsonl")[0] == 2

"""Command ``init``: what it makes works as it is."""

import importlib.util
import json
import sys

import pytest
import yaml

from pact_lightning.cli.main import main
from pact_lightning.tasks.jsonl import JsonlTasks

KINDS = ("functions", "mcp", "environment")


@pytest.fixture(params=KINDS)
def agent(request, tmp_path, monkeypatch):
    """A new folder, entered as its reader would."""
    if request.param == "mcp":
        pytest.importorskip("mcp")
    monkeypatch.chdir(tmp_path)
    main(["init", "my_agent", "--from", request.param])
    monkeypatch.chdir(tmp_path / "my_agent")
    monkeypatch.syspath_prepend(tmp_path / "my_agent")
    yield tmp_path / "my_agent"
    sys.modules.pop("shop", None)


def their_test(agent):
    spec = importlib.util.spec_from_file_location("test_agent_of_init", agent / "test_agent.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    return theirs


def test_the_folder_is_whole_and_its_own_test_passes(agent):
    tasks = [task for name in ("train", "validation") for task in JsonlTasks(agent / f"{name}.jsonl").load()]
    assert len(tasks) == 3
    assert sum(task.trace is not None for task in tasks) == 2
    made = {path.name for path in agent.iterdir() if path.is_file()}
    assert made == {"my_agent.yaml", "shop.py", "test_agent.py", "train.jsonl", "validation.jsonl"}
    assert not any("$" in (agent / name).read_text() for name in made), "nothing is left to be filled in"
    theirs = their_test(agent)
    assert [task.id for task in theirs.TASKS] == [task.id for task in tasks]
    for task in theirs.TASKS:
        theirs.test_the_expert_s_calls_get_the_responses_in_the_trace(task)
    theirs.test_the_environment_is_ready_for_training()


@pytest.mark.parametrize("agent", ["functions"], indirect=True)
def test_a_tool_and_a_trace_of_one_s_own_pass_the_folder_s_test(agent):
    with (agent / "shop.py").open("a") as file:
        file.write("\n\ndef stock_of(article: str) -> int:\n")
        file.write("    '''Return the pieces.\n\n    Args:\n        article: Its name.\n    '''\n")
        file.write("    return {'book': 3}[article]\n")
    first = json.loads((agent / "train.jsonl").read_text().splitlines()[0])
    call = {"name": "stock_of", "arguments": {"article": "book"}}
    turn = {"reasoning": "I need the stock of books.", "calls": [call], "responses": ["3"]}
    mine = {"id": "mine", "reference": {"answer": "3", "calls": [call]}, "trace": {"turns": [turn]}}  # as in the README
    with (agent / "train.jsonl").open("a") as file:
        file.write(json.dumps(first | mine) + "\n")
    theirs = their_test(agent)
    names = {tuple(tool["function"]["name"] for tool in task.prompt.tools) for task in theirs.TASKS}
    assert names == {("price_of", "total", "stock_of")}, "a new function is a tool of every task"
    for task in theirs.TASKS:
        theirs.test_the_expert_s_calls_get_the_responses_in_the_trace(task)
    theirs.test_the_environment_is_ready_for_training()


@pytest.mark.parametrize("agent", ["environment"], indirect=True)
def test_fit_works_at_once(agent):
    small = ["--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0", "--trainer.limit_val_batches", "0"]
    short = ["--data.init_args.limits.max_new_tokens_per_turn", "16"]
    main(["fit", "-c", "my_agent.yaml", "--trainer.accelerator", "cpu", *small, *short])
    run = agent / "runs" / "my_agent" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert "environment_failed" not in (run / "trajectories" / "phase-0000.jsonl").read_text()


def test_every_field_of_the_recipe_has_its_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["init", "a"])
    text = (tmp_path / "a" / "a.yaml").read_text()
    assert yaml.safe_load(text)["model"]["class_path"] == "pact_lightning.PACTModule"
    values = [line for line in text.splitlines() if ": " in line.split("#")[0] and "class_path" not in line]
    bare = [line.strip() for line in values if "#" not in line and "bundled" not in line]
    assert bare == ["devices: 1"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["init", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"error: {tmp_path} already exists; give a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

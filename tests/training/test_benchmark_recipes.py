"""The recipes of the benchmarks run, with the bundled policy and rows written for the test; MatchTIR's rows train."""

import json
from pathlib import Path

import pytest
from test_command_tasks import MATCHTIR_ROW
from toolhop_rows import ROW as TOOLHOP_ROW

from pact_lightning.cli.main import main
from pact_lightning.tasks.jsonl import JsonlTasks

# Lightning's word to people who pass arguments by mistake, and its hints about loaders.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter", "ignore::UserWarning:lightning")

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
SMALL = [
    *("--model.init_args.policy.model", "bundled", "--model.init_args.policy.dtype", "float32"),
    *("--data.init_args.limits.max_turns", "2", "--data.init_args.limits.max_new_tokens_per_turn", "24"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


def results(path):
    (file,) = path.rglob("results-validation.json")
    return json.loads(file.read_text())


def test_toolhop_validate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hop.json").write_text(json.dumps([{**TOOLHOP_ROW, "id": number} for number in range(3)]))
    source = "--data.init_args.validation.init_args.path"
    main(["validate", "-c", str(RECIPES / "toolhop_validate.yaml"), *SMALL, source, "hop.json"])
    found = results(tmp_path)
    assert (found["tasks"], found["left_out"]) == (3, 0)
    scores = found["scores"]
    assert {"toolhop_correct", "toolhop_correct_ftrl", "solve_f1", "answer_correct"} <= set(scores)
    # What was not rolled out is wrong: three rows are at most 3 of 995.
    assert 0 <= scores["toolhop_correct"] <= 3 / 995 + 1e-6


def test_ftrl_validate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(MATCHTIR_ROW) + "\n")
    source = "--data.init_args.validation.init_args.path"
    main(["validate", "-c", str(RECIPES / "ftrl_validate.yaml"), *SMALL, source, "rows.jsonl"])
    found = results(tmp_path)
    assert found["tasks"] == 1
    assert {"solve_p", "solve_r", "solve_f1"} <= set(found["scores"])
    assert not any(name.startswith("toolhop") for name in found["scores"])


def test_matchtir_rows_train_from_end_to_end(tmp_path, monkeypatch):
    """Rows with ground_truth, imported with traces by replay, through two phases of PACT."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text((json.dumps(MATCHTIR_ROW) + "\n") * 2)
    main(["tasks", "import", "train.jsonl", "tasks.jsonl", "--format", "matchtir"])
    assert [len(task.trace.turns) for task in JsonlTasks("tasks.jsonl").load()] == [2, 2]
    recipe = {
        "model": {
            "class_path": "pact_lightning.PACTModule",
            "init_args": {"anchor_probability": 0.0, "policy": {"dtype": "float32"}, "max_tokens_per_forward": 4096},
        },
        "data": {
            "class_path": "pact_lightning.RolloutDataModule",
            "init_args": {
                "train": {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": "tasks.jsonl"}},
                "prompts_per_phase": 2,
                "prompts_per_step": 2,
                "rollouts_per_prompt": 2,
                "max_prompt_tokens": 1024,
                "limits": {"max_turns": 2, "max_new_tokens_per_turn": 24, "max_trajectory_tokens": 256},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": "run",
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    main(["fit", "-c", "recipe.yaml"])
    (file,) = tmp_path.rglob("phase-0000.jsonl")
    rollouts = [json.loads(line) for line in file.read_text().splitlines()]
    assert [rollout["task_id"] for rollout in rollouts].count("ftrl-0") == 2
    assert all(len(rollout["turn_rewards"]) >= 1 for rollout in rollouts)

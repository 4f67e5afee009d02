"""BFCL's recipes and page as a user runs them, with the small policy of the package in the place of a large one."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pact_lightning.tasks.bfcl.package import INSTALL
from pact_lightning.tasks.bfcl.tasks import side_of

pytest.importorskip("bfcl_eval", reason=f"needs BFCL: {INSTALL}")

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "bfcl.md"
POLICY = {"model": "bundled", "adapter": "lora", "dtype": "float32", "gradient_checkpointing": False}


def run(folder, verb, recipe, overrides, *arguments):
    """Runs the command with a recipe and an overlay, in an empty folder."""
    overlay = folder / f"{verb}.yaml"
    overlay.write_text(yaml.safe_dump(overrides), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pact_lightning.cli.main",
        verb,
        "-c",
        str(ROOT / "recipes" / recipe),
        "-c",
        str(overlay),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def bfcl(**further):
    """Short prompts only: a few tools each, and ``max_prompt_tokens`` leaves most tasks out."""
    return {"init_args": {"distractors": 0, "system_prompt": None} | further}


@pytest.mark.slow
def test_two_phases_of_pact_and_a_validation(tmp_path):
    limits = {"max_turns": 6, "max_new_tokens_per_turn": 40, "max_trajectory_tokens": 1500}
    sizes = {"prompts_per_phase": 4, "prompts_per_step": 2, "rollouts_per_prompt": 2, "max_prompt_tokens": 700}
    data = {"train": bfcl(), "validation": bfcl(), "test": None, "limits": limits, **sizes}
    run(
        tmp_path,
        "fit",
        "bfcl_pact.yaml",
        {
            "model": {"init_args": {"policy": POLICY | {"lora_r": 4}}},
            "data": {"init_args": data},
            "trainer": {"accelerator": "cpu", "max_epochs": 2, "check_val_every_n_epoch": 2},
        },
    )
    (folder,) = tmp_path.glob("runs/bfcl_pact*/version_0")
    rows = list(csv.DictReader((folder / "metrics.csv").open(encoding="utf-8")))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert any(loss != 0 for loss in losses), "the traces are trained on, whatever the rollouts earn"
    accuracies = [row["val/multi_turn_accuracy"] for row in rows if row.get("val/multi_turn_accuracy")]
    assert len(accuracies) == 2, "before training and after the last phase"
    assert len(list((folder / "trajectories").glob("phase-*.jsonl"))) == 2

    printed = run(
        tmp_path,
        "validate",
        "bfcl_validate.yaml",
        {
            "model": {"init_args": {"policy": POLICY | {"lora_r": 4}}},
            "data": {"init_args": {"validation": bfcl(subset="test"), "limits": limits, "max_prompt_tokens": 700}},
            "trainer": {"accelerator": "cpu"},
        },
        "--ckpt_path",
        str(folder / "checkpoints" / "last.ckpt"),
    )
    (file,) = tmp_path.glob("runs/bfcl_validate*/**/results-validation.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    assert (results["tasks"] + results["left_out"]) % 4 == 0, "every scenario of one side, in four categories"
    assert results["scores"]["multi_turn_tasks"] == results["tasks"] > 0
    assert 0 <= results["scores"]["multi_turn_accuracy"] <= 1
    assert "multi_turn_accuracy" in printed


def test_the_recipe_trains_and_tests_on_different_scenarios():
    data = yaml.safe_load((ROOT / "recipes" / "bfcl_pact.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    parts = [data[name]["init_args"] for name in ("train", "validation", "test")]
    assert [part["subset"] for part in parts] == ["train", "validation", "test"]
    assert len({(part["train_fraction"], part["validation_fraction"]) for part in parts}) == 1


def test_the_programs_of_the_page_run(capsys):
    """docs/bfcl.md cannot be among the pages whose programs always run: they need BFCL."""
    page = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    exec("".join(programs), {})
    *_, right, wrong = capsys.readouterr().out.splitlines()
    assert right == "True"
    assert wrong.startswith("False UserTurnCheck(")


def test_the_page_tells_the_split_as_it_is():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    sides = Counter(side_of(scenario, 0.6, 0.2) for scenario in range(200))
    training, validation, test = sides["train"], sides["validation"], sides["test"]
    assert f"{training} scenarios are for training, {validation} for validation, {test} for the test" in page

"""Journeys of a new user from one command to the next: they end as one expects."""

import csv
import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from cli_recipe import bundled
from shallow_policy import shallow_folder
from test_run_folders import run, written  # noqa: F401  # a fixture

from pact_lightning.tasks.bundled.tasks import BundledTasks


def sft(adapter):
    """A recipe of supervised training that exports; the adapter's shape is not the default's."""
    config = yaml.safe_load(Path(written("unused.yaml")).read_text())
    policy = {
        "model": shallow_folder(),
        "adapter": adapter,
        "lora_r": 6,
        "lora_alpha": 24,
        "target_modules": ["q_proj", "v_proj"],
    }
    config["model"] = {
        "class_path": "pact_lightning.SFTModule",
        "init_args": {"policy": policy | {"dtype": "float32"}, "optimizer": {"learning_rate": 2.0e-2}},
    }
    config["data"] = {
        "class_path": "pact_lightning.TraceDataModule",
        "init_args": {"train": bundled("train", 4), "batch_size": 2},
    }
    config["trainer"] |= {"max_epochs": 2, "limit_val_batches": 0}
    config["trainer"]["callbacks"][0] = {"class_path": "pact_lightning.ExportPolicy"}
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    return "sft.yaml"


def first_step(folder):
    with Path(folder, "metrics.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["train/kl"])


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_supervised_training_then_pact_from_it(run, adapter):  # noqa: F811
    assert run("fit", "-c", sft(adapter))[0] == 0
    checkpoint = "runs/sft/version_0/checkpoints/last.ckpt"
    my = written()
    policy = ("--model.init_args.policy.adapter", adapter)
    status, told = run("fit", "-c", my, *policy, "--ckpt_path", checkpoint)
    assert status == 2
    assert "was made by SFTModule, and PACTModule cannot go on with its optimiser" in told.splitlines()[-1]
    assert f"--model.init_args.policy.start_from {checkpoint}" in told.splitlines()[-1]
    starts = {"from_checkpoint": ("--model.init_args.policy.start_from", checkpoint)}
    if adapter == "qlora":  # a LoRA is exported merged, and its folder is a model like any other
        starts["from_export"] = ("--model.init_args.policy.model", "runs/sft/version_0/exported")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, start in starts.items():
        assert run("fit", "-c", my, *policy, *start, "--name", name)[0] == 0
        folder = f"runs/{name}/version_0"
        row = first_step(folder)
        assert float(row["train/kl"]) == pytest.approx(0.0, abs=1e-6), "the reference is the start policy"
        assert float(row["train/learning_rate"]) == pytest.approx(1e-3), "the recipe's own"
        assert (row["step"], Path(folder, "trajectories/phase-0000.jsonl").exists()) == ("0", True)
        after = torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)
        assert after["global_step"] == 2
        assert after["made_by"]["policy"]["lora_alpha"] == 24
        near = [(after["state_dict"][key] - weight).abs().max() for key, weight in trained.items()]
        assert 0 < max(near) < 0.02, "two steps of 1e-3 away from where supervised training ended"
    status, _ = run("fit", "-c", my, *policy, *start, "--name", name, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert status == 0


ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
asked = tokenizer.apply_chat_template(**json.loads(sys.argv[2]), add_generation_prompt=True, return_tensors="pt")
reply = model.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked["input_ids"].shape[1]:]
print(json.dumps(tokenizer.decode(reply)))
"""


def test_an_export_answers_with_a_tool_call_in_plain_transformers(run, warm_python):  # noqa: F811
    my = written()
    recipe = yaml.safe_load(Path(my).read_text())
    recipe["model"]["init_args"]["policy"]["model"] = "bundled"
    recipe["trainer"]["callbacks"].append({"class_path": "pact_lightning.ExportPolicy"})
    Path(my).write_text(yaml.safe_dump(recipe))
    status, told = run("fit", "-c", my)
    assert status == 0
    assert "the policy is exported to runs/my/version_0/exported" in told
    prompt = BundledTasks("validation", 1).load()[0].prompt
    question = json.dumps({"conversation": list(prompt.messages), "tools": list(prompt.tools)})
    command = warm_python.command("-c", ASK, "runs/my/version_0/exported", question)
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "<tool_call>" in json.loads(asked.stdout.splitlines()[-1])

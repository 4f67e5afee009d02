"""Exported folders: other programs load them, and they are the policy that was trained."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hand_made import bundled_renderer
from huggingface_hub import ModelCard
from small_run import fit, sft
from test_start import trained as noisy

from pact_lightning.callbacks.export import ExportPolicy
from pact_lightning.export.card import cleaned
from pact_lightning.export.folder import check_folder, write_export
from pact_lightning.export.trained import TrainedPolicy
from pact_lightning.policy.loading import BUNDLED_FOLDER, PolicyConfig, load_policy
from pact_lightning.policy.state_dict import trainable_state
from pact_lightning.tasks.bundled.tasks import BundledTasks

FORMS = [("lora", "merged"), ("lora", "adapter"), ("qlora", "merged"), ("qlora", "adapter"), ("full", "merged")]
TOKENS = 24

# Nothing of this package: what a user has who gets the folder.
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

root, base, question, tokens = sys.argv[1:]
nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)
found = {}
for adapter, form in json.loads(sys.stdin.read()):
    name = f"{root}/{adapter}-{form}"
    if form == "merged":
        model = AutoModelForCausalLM.from_pretrained(name)
    else:
        how = {"quantization_config": nf4} if adapter == "qlora" else {}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **how), name)
        model.generation_config = GenerationConfig.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    asked = tokenizer.apply_chat_template(**json.loads(question), add_generation_prompt=True, return_tensors="pt")
    reply = model.eval().generate(**asked, max_new_tokens=int(tokens))[0]
    found[f"{adapter}-{form}"] = [asked["input_ids"][0].tolist(), reply[asked["input_ids"].shape[1] :].tolist()]
assert "pact_lightning" not in sys.modules
print(json.dumps(found))
"""


def policy_of(adapter):
    config = PolicyConfig(adapter=adapter, dtype="float32", lora_r=4, lora_alpha=12)
    if adapter != "full":
        return config, noisy(config)
    policy = load_policy(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.002)
    return config, policy


@torch.no_grad()
def greedy(policy, ids, ends):
    """Greedy tokens by forwards without a cache."""
    said = []
    while len(said) < TOKENS and (not said or said[-1] not in ends):
        logits = policy(torch.tensor([[*ids, *said]])).logits
        said.append(int(logits[0, -1].argmax()))
    return said


def test_plain_transformers_and_peft_load_every_form_with_the_same_greedy_tokens(tmp_path):
    renderer = bundled_renderer()
    prompt = BundledTasks("validation", 1).load()[0].prompt
    ids = renderer.prompt(prompt.messages, prompt.tools)
    wanted = {}
    for adapter, form in FORMS:
        config, policy = policy_of(adapter)
        write_export(TrainedPolicy(config, trainable_state(policy), "PACTModule"), tmp_path / f"{adapter}-{form}", form)
        wanted[f"{adapter}-{form}"] = [ids, greedy(policy.eval(), ids, renderer.end_ids)]
    question = json.dumps({"conversation": list(prompt.messages), "tools": list(prompt.tools)})
    command = [sys.executable, "-P", "-c", PLAIN, str(tmp_path), str(BUNDLED_FOLDER), question, str(TOKENS)]
    asked = subprocess.run(command, input=json.dumps(FORMS), capture_output=True, text=True, check=True)
    found = json.loads(asked.stdout.splitlines()[-1])
    assert found == wanted
    assert len({str(said) for _, said in wanted.values()}) > 1, "noise changes what the base would say"
    merged = {file.name for file in (tmp_path / "qlora-merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"} <= merged
    config = json.loads((tmp_path / "qlora-merged" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"], "vLLM chooses its model class by it"
    assert (config["use_cache"], "quantization_config" in config) == (True, False)


def test_the_policy_that_a_fit_exports_stays_as_it_is(tmp_path):
    """The next stage of the same Trainer still has its adapter; a merge would have taken it off."""

    class Kept(ExportPolicy):
        def on_fit_end(self, trainer, pl_module):
            self.before = {name: weight.clone() for name, weight in pl_module.state_dict().items()}
            super().on_fit_end(trainer, pl_module)
            self.after, self.steps = pl_module.state_dict(), trainer.global_step
            assert type(pl_module.policy).__name__ == "PeftModelForCausalLM"

    callback = Kept(str(tmp_path / "out"), to="adapter")
    fit(tmp_path, sft, callback)
    assert any("lora_A" in name for name in callback.before)
    torch.testing.assert_close(callback.after, callback.before, rtol=0, atol=0)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"| optimiser steps | {callback.steps} |" in card.content
    assert "Validation: 2 tasks, greedy" in card.content
    assert "| answer_correct |" in card.content


# ------------------------------------------------------------------------------------------------------------ the card

RECIPE = {
    "model": {"init_args": {"policy": {"model": "/home/me/models/qwen"}}},
    "data": {
        "class_path": "pact_lightning.RolloutDataModule",
        "init_args": {
            "train": {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": "/home/me/tasks.jsonl"}},
            "evaluation": {"temperature": 0.5, "samples": 4},
        },
    },
    "trainer": {
        "max_epochs": 3,
        "default_root_dir": "/home/me/runs",
        "callbacks": [{"class_path": "my.Sink", "init_args": {"api_key": "s3cret", "base_url": "http://10.1.1.1"}}],
    },
}


def test_a_card_tells_recipe_data_and_scores_and_nothing_of_the_machine(tmp_path):
    config, policy = policy_of("lora")
    history = [(0.0, {"answer_correct": 0.25, "stop_answered": 1.0}), (3.0, {"answer_correct": 0.5, "mine": 2.0})]
    trained = TrainedPolicy(config, trainable_state(policy), "PACTModule", RECIPE, 3, 12, history, 40)
    write_export(trained, tmp_path / "agent", "merged")
    texts = {file.name: file.read_text() for file in (tmp_path / "agent").iterdir() if file.suffix != ".safetensors"}
    for name, text in texts.items():
        for private in (str(tmp_path), str(BUNDLED_FOLDER), "/home/me", "s3cret", "10.1.1.1", "More Information"):
            assert private not in text, (name, private)
    card = ModelCard.load(tmp_path / "agent" / "README.md")
    assert card.data.library_name == "transformers"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "answer_correct": 0.5,
        "mine": 2.0,
    }
    assert "Validation: 40 tasks, temperature 0.5, 4 rollouts a task" in card.text
    assert "| answer_correct | 0.250 | 0.500 |" in card.text
    assert "path=tasks.jsonl" in card.text
    assert "max_epochs: 3" in card.text
    sampling = json.loads(texts["generation_config.json"])
    assert (sampling["do_sample"], sampling["temperature"], sampling["top_p"]) == (True, 0.5, 1.0)


def test_addresses_of_data_that_are_no_paths_stay():
    kept = {"path": "data/tasks.jsonl", "name": "me/set", "url": "https://example.org/a/b", "note": "1/2 of all"}
    assert cleaned(kept) == kept


# ------------------------------------------------------------------------------------------------------- the folder


def test_a_folder_with_other_files_is_left_alone_and_an_earlier_export_is_replaced_whole(tmp_path):
    config, policy = policy_of("lora")
    trained = TrainedPolicy(config, trainable_state(policy), "PACTModule")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="contains files that are not an export"):
        write_export(trained, other, "merged")
    assert (other / "notes.txt").read_text() == "mine"
    out = tmp_path / "out"
    write_export(trained, out, "adapter")
    broken = TrainedPolicy(config, {"unknown": torch.zeros(1)}, "PACTModule")
    with pytest.raises(ValueError, match="do not fit the policy"):
        write_export(broken, out, "merged")
    assert (out / "adapter_config.json").is_file(), "a failed export leaves the earlier one"
    write_export(trained, out, "merged")
    assert not (out / "adapter_config.json").exists(), "transformers would put the adapter on the merged model"
    with pytest.raises(FileExistsError, match="is the folder of the base model"):
        check_folder(out, replace(config, model=str(out)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]

"""The page docs/your_model.md, as its reader follows it: a model's folder, tools and ten traces to a trained QLoRA."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("renderers", reason="pip install 'pact-lightning[families]'")
from family_tokenizers import REAL, byte_tokenizer, controls_of, real_tokenizer, template_of

from pact_lightning.cli.main import main

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"(?:^<!-- as: ([\w.]+) -->\n)?^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a test has no time for, put into the recipe.
SMALL = {
    "model": {"init_args": {"policy": {"lora_r": 4, "dtype": "float32"}}},
    "data": {
        "init_args": {
            "prompts_per_phase": 2,
            "prompts_per_step": 2,
            "rollouts_per_prompt": 2,
            "limits": {"max_turns": 2, "max_new_tokens_per_turn": 8},
        }
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0},
}


def save_llama(folder, template):
    """A tiny random model of Llama 3's architecture, format and template."""
    tokenizer = byte_tokenizer(controls_of("llama-3"), begin="<|begin_of_text|>", end="<|eot_id|>", template=template)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **sizes, **ends)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_qwen(folder):
    """A tiny random model as Qwen3.5 comes: with a tower for pictures, and its real vocabulary where that is here."""
    if not hasattr(transformers, "Qwen3_5ForConditionalGeneration"):
        pytest.skip("this transformers has no Qwen3.5")
    if (REAL / "qwen3" / "tokenizer.json").is_file():
        tokenizer = real_tokenizer("qwen3")
        tokenizer.chat_template = template_of("qwen3_5_think")
    else:
        tokenizer = byte_tokenizer(controls_of("qwen3.5"), end="<|im_end|>", template=template_of("qwen3_5_think"))
    text = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32, "layer_types": ["linear_attention", "full_attention"],
        "vocab_size": len(tokenizer), "max_position_embeddings": 8192, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    torch.manual_seed(0)
    config = transformers.Qwen3_5Config(text_config=text, vision_config=tower)
    transformers.Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shrink(path):
    """Make a recipe's run short."""

    def put(values, into):
        for key, value in values.items():
            into[key] = put(value, into[key]) if isinstance(value, dict) else value
        return into

    path.write_text(yaml.safe_dump(put(SMALL, yaml.safe_load(path.read_text()))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", ["llama-3", "qwen3.5"])
def test_the_page_leads_from_a_model_s_folder_to_a_trained_qlora(family, tmp_path):
    if family == "llama-3":
        save_llama(tmp_path / "model", template_of("llama3_1"))
    else:
        save_qwen(tmp_path / "model")
    environment = os.environ | {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MODEL": str(tmp_path / "model"),
    }
    folder, agent, said = tmp_path, tmp_path / "my_agent", ""
    blocks = BLOCK.findall((ROOT / "docs" / "your_model.md").read_text(encoding="utf-8"))
    assert [language for _, language, _ in blocks] == ["sh", "python", "sh", "sh", "sh", "python", "sh"]
    for name, language, text in blocks:
        if language == "python":
            (folder / name).write_text(text)
            continue
        script = text.replace("plan -c", "plan --tflops 1 --bandwidth 100 -c")  # nothing is measured
        run = subprocess.run(
            ["sh", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        said += run.stdout + run.stderr
        assert run.returncode == 0, said[-6000:]
        if folder == tmp_path:  # the page's `cd`
            folder = agent
            shrink(agent / "my_agent.yaml")
    assert f"The model's format is {family}." in said
    assert len((agent / "train.jsonl").read_text().splitlines()) == 10
    config = yaml.safe_load((agent / "runs/my_agent/version_0/config.yaml").read_text())
    policy = config["model"]["init_args"]["policy"]
    assert (policy["model"], policy["adapter"]) == (str(tmp_path / "model"), "qlora")
    rows = list(csv.DictReader((agent / "runs/my_agent/version_0/metrics.csv").open()))
    assert any(float(row.get("train/sft_loss") or 0) > 0 for row in rows), "the traces are supervised"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("llama", "is of no known family"),
        ("./nowhere", "there is no model folder"),
        ("empty", "has no config.json"),
    ],
)
def test_init_refuses_what_it_could_not_train(model, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    save_llama(tmp_path / "llama", "{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    with pytest.raises(SystemExit) as stopped:
        main(["init", "my_agent", "--model", model])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "my_agent").exists()


def test_a_hub_id_stands_in_the_recipe_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["init", "my_agent", "--model", "someone/Some-8B"])
    recipe = yaml.safe_load((tmp_path / "my_agent" / "my_agent.yaml").read_text())
    assert recipe["model"]["init_args"]["policy"]["model"] == "someone/Some-8B"
    limits = recipe["data"]["init_args"]
    needed = limits["max_prompt_tokens"] + limits["limits"]["max_trajectory_tokens"]
    assert needed <= recipe["model"]["init_args"]["max_tokens_per_forward"]

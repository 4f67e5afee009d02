"""A policy that starts from a trained adapter, its reference, and its export."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pact_lightning.policy.loading import PolicyConfig, load_policy, with_start
from pact_lightning.policy.reference import make_reference, reference_policy
from pact_lightning.policy.saving import save_policy
from pact_lightning.policy.state_dict import trainable_state

IDS = torch.arange(20, 60)[None]
CONFIG = PolicyConfig(dtype="float32", lora_r=4, lora_alpha=12, attn_implementation="eager")


def trained(config):
    """A policy whose adapter does something."""
    policy = load_policy(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return policy


def logits(policy):
    with torch.no_grad():
        return policy.eval()(IDS).logits


@pytest.mark.parametrize("layers", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ["embed_tokens", "lm_head"]])
def test_an_export_of_an_adapter_on_tied_weights_is_the_policy(tmp_path, layers):
    config = replace(CONFIG, target_modules=layers)
    policy = trained(config)
    before = logits(policy)
    save_policy(config, trainable_state(policy), tmp_path, "merged")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(exported), before, rtol=0, atol=1e-4)
    assert not exported.config.tie_word_embeddings


def test_an_export_of_an_adapter_that_leaves_tied_weights_alone_keeps_them_tied(tmp_path):
    policy = trained(CONFIG)
    save_policy(CONFIG, trainable_state(policy), tmp_path, "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings


@pytest.fixture(scope="module", params=["lora", "qlora"])
def adapter(request, tmp_path_factory):
    """A trained adapter's folder as PEFT writes it, what is asked to go on with it, and the logits of its policy."""
    folder = tmp_path_factory.mktemp("adapter")
    config = replace(CONFIG, adapter=request.param, target_modules=["q_proj", "down_proj"])
    policy = trained(config)
    policy.save_pretrained(folder)
    return folder, PolicyConfig(adapter=request.param, dtype="float32", attn_implementation="eager"), logits(policy)


@pytest.mark.parametrize("field", ["model", "start_from"])
def test_the_policy_starts_with_the_adapter_and_so_does_its_reference(adapter, field):
    folder, config, wanted = adapter
    config = with_start(replace(config, **{field: str(folder)}))
    assert (config.lora_r, config.lora_alpha, config.target_modules) == (4, 12, ["down_proj", "q_proj"])
    policy = load_policy(config)
    torch.testing.assert_close(logits(policy), wanted, rtol=0, atol=0)
    assert {name.split(".")[-3] for name, weight in policy.named_parameters() if weight.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    reference = make_reference(policy, config.adapter, started=True)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.mul_(0.5)
    moved = logits(policy)
    assert (moved - wanted).abs().max() > 1e-3
    with reference_policy(policy, reference) as lent:
        torch.testing.assert_close(lent(IDS).logits, wanted, rtol=0, atol=0)
    torch.testing.assert_close(logits(policy), moved, rtol=0, atol=0)


def test_full_training_starts_from_the_merged_adapter(adapter):
    folder, config, wanted = adapter
    if config.adapter == "qlora":
        pytest.skip("its base is another one without 4 bits")
    policy = load_policy(replace(config, adapter="full", start_from=str(folder)))
    assert all(weight.requires_grad for weight in policy.parameters())
    torch.testing.assert_close(logits(policy), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "is not a LoRA but 'PROMPT_TUNING'; merge it into its base"),
        ({"target_parameters": ["down_proj"]}, r"is a LoRA of experts \(down_proj\), which is not trained here; merge"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\], weights beside the LoRA"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"base_model_name_or_path": None}, "does not say which model it was trained on"),
        ({"target_modules": ["no_such_layer"]}, "does not fit the model"),
        ({"r": 8}, "does not fit the model"),
        ("{", "is not valid JSON"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(adapter, tmp_path, changes, sentence):
    folder, config, _ = adapter
    if config.adapter == "qlora":
        pytest.skip("the same sentences")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "adapter_config.json"
    path.write_text(changes if isinstance(changes, str) else json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=sentence):
        load_policy(replace(config, model=str(tmp_path)))


def test_a_missing_start_is_told_with_what_to_give(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is neither a checkpoint nor a folder with adapter_config\.json; give a folder"
    ):
        load_policy(replace(CONFIG, start_from=str(tmp_path / "gone")))

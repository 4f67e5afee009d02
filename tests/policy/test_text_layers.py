"""Layers that an adapter and 4 bits reach, in models that are more than dense text models."""

import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from pact_lightning.policy.loading import PolicyConfig, load_policy, policy_skeleton

TEXT = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURES = {"image_size": 28, "patch_size": 14}
GEMMA_3 = {"text_config": {**TEXT, "sliding_window": 8}, "vision_config": TOWER | PICTURES, "mm_tokens_per_image": 4}
FUYU = {**TEXT, "patch_size": 2, "num_channels": 1}
SOUND = {"text_config": TEXT, "audio_config": {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2}}
WRAPPERS = {
    "Gemma3Config": (GEMMA_3, "vision_tower"),
    "FuyuConfig": (FUYU, "vision_embed_tokens"),
    "MossTranscribeDiarizeConfig": (SOUND, "audio_tower"),
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}


def config_of(kind, values):
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    return getattr(transformers, kind)(**values)


def saved(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def adapted(policy):
    return [name for name, weight in policy.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "query_key_value", "out_proj", "vision_embed_tokens"]])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_an_adapter_leaves_towers_alone(kind, target, tmp_path):
    values, tower = WRAPPERS[kind]
    config_of(kind, values).save_pretrained(tmp_path)
    policy = policy_skeleton(PolicyConfig(model=str(tmp_path), lora_r=4, target_modules=target))
    linear = [name for name, module in policy.named_modules() if isinstance(module, torch.nn.Linear)]
    assert any(tower in name for name in linear), "the model has a tower"
    assert not any(tower in name or "projector" in name for name in adapted(policy))
    layers = {name.partition(".layers.")[2].partition(".")[0] for name in adapted(policy)}
    assert layers == {"0", "1"}, "each layer of the text model has its adapter"


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_a_wrapper_trains_on_text(adapter, tmp_path):
    folder = saved(config_of("Gemma3Config", GEMMA_3), tmp_path)
    policy = load_policy(PolicyConfig(model=folder, adapter=adapter, lora_r=4, dtype="float32"))
    policy(
        input_ids=torch.tensor([[5, 6, 7]]), token_type_ids=torch.zeros(1, 3, dtype=torch.long)
    ).logits.sum().backward()
    weights = {name: weight for name, weight in policy.named_parameters() if weight.grad is not None}
    assert set(weights) == set(adapted(policy))
    assert not any("vision" in name for name in weights)


@pytest.mark.parametrize(
    ("adapter", "said"), [("lora", "LoRA leaves them frozen, and"), ("qlora", "LoRA leaves them frozen, in NF4, and")]
)
def test_experts_that_no_adapter_reaches_are_told_with_their_number(adapter, said, tmp_path):
    folder = saved(config_of("GptOssConfig", TEXT | EXPERTS), tmp_path)
    with pytest.warns(UserWarning, match="experts kept as one tensor") as found:
        policy = load_policy(PolicyConfig(model=folder, adapter=adapter, lora_r=4, dtype="float32"))
    (warning,) = [str(one.message) for one in found if "experts" in str(one.message)]
    base = AutoModelForCausalLM.from_pretrained(folder)
    experts = {name: weight for name, weight in base.named_parameters() if "experts" in name and "bias" not in name}
    count, total = sum(weight.numel() for weight in experts.values()), base.num_parameters()
    assert warning.startswith(f"{count:,} of {total:,} parameters are experts kept as one tensor (mlp.experts.gate_up")
    assert warning.endswith(f"{said} all-linear adapts layers of the attention")
    assert not any("experts" in name for name in adapted(policy))


@pytest.mark.parametrize("kind", ["Qwen3Config", "Qwen3_5TextConfig"])
def test_dense_models_are_told_nothing(kind, tmp_path):
    """Convolutions have weights of three dimensions too."""
    linear = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "layer_types": ["linear_attention"] * 2}
    folder = saved(config_of(kind, TEXT | (linear if "5" in kind else {})), tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(experts|exclude_modules)")
        load_policy(PolicyConfig(model=folder, lora_r=4, dtype="float32"))


def test_a_model_that_is_no_language_model_is_refused_in_a_sentence(tmp_path):
    config_of("Qwen3VLConfig", {}).save_pretrained(tmp_path)
    for load in (load_policy, policy_skeleton):
        with pytest.raises(ValueError, match=r"is of the type 'qwen3_vl', .* give the text model of this family"):
            load(PolicyConfig(model=str(tmp_path)))

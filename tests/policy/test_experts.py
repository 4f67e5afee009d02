"""Experts that are kept as one tensor: in NF4 under a LoRA, planned, taken out again; and checkpoints that come so."""

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from test_text_layers import TEXT, adapted, config_of, saved
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pact_lightning.plan.lengths import Lengths, StepShape, fullest, step_packs
from pact_lightning.plan.memory import NF4_BYTES, ScoringConfig, standing_bytes, update_bytes
from pact_lightning.policy.experts import expert_tensors, experts_per_token
from pact_lightning.policy.loading import PolicyConfig, load_policy, policy_skeleton

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MODELS = {
    "GptOssConfig": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "Glm4MoeConfig": ROUTED,
    "Qwen3MoeConfig": {**EXPERTS, "num_experts": 4},
}
NF4 = {"compress_statistics": True, "quant_type": "nf4"}
ROW = torch.tensor([[5, 6, 7, 8, 9]])


def config(folder, adapter, **changes):
    return PolicyConfig(model=str(folder), adapter=adapter, lora_r=4, dtype="float32", **changes)


@pytest.mark.filterwarnings("ignore:.*experts kept as one tensor")
@pytest.mark.parametrize("kind", MODELS)
def test_qlora_has_its_experts_in_nf4(kind, tmp_path):
    """The same weights as by bitsandbytes' own functions, gradients through them, and out of their 4 bits for good."""
    folder = saved(config_of(kind, TEXT | MODELS[kind]), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = load_policy(config(folder, "qlora"))
    wanted = {
        tensor.path: dequantize_4bit(
            *quantize_4bit(getattr(tensor.module, tensor.name), compress_statistics=True, quant_type="nf4")
        )
        for tensor in expert_tensors(plain)[-2:]
    }  # the last layer's
    found = expert_tensors(policy)
    assert len(found) == len(expert_tensors(plain)) > 0
    for tensor in found[-2:]:
        torch.testing.assert_close(getattr(tensor.module, tensor.name), wanted[tensor.path], rtol=0, atol=0)
        stored = tensor.module.parametrizations[tensor.name].original
        assert (stored.dtype, stored.numel(), stored.requires_grad) == (torch.uint8, tensor.weights // 2, False)
    out = load_policy(config(folder, "qlora"), dequantized=True)
    policy(input_ids=ROW).logits.sum().backward()
    assert {name for name, weight in policy.named_parameters() if weight.grad is not None} == set(adapted(policy))
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=ROW).logits, out(input_ids=ROW).logits, rtol=1e-4, atol=1e-5)
    merged = out.merge_and_unload()
    assert not any("parametrizations" in name for name in merged.state_dict())
    torch.testing.assert_close(
        getattr(expert_tensors(merged)[-1].module, found[-1].name).data, wanted[found[-1].path], rtol=0, atol=0
    )
    moved = getattr(found[-1].module.to("meta"), found[-1].name)  # the scales go where the weights go
    assert (moved.device.type, tuple(moved.shape)) == ("meta", found[-1].shape)


@pytest.mark.filterwarnings("ignore:.*experts kept as one tensor")
@pytest.mark.parametrize("kind", MODELS)
def test_a_mixture_is_planned_as_it_is_loaded(kind, tmp_path):
    folder = saved(config_of(kind, TEXT | MODELS[kind]), tmp_path)
    skeleton, policy = policy_skeleton(config(folder, "qlora")), load_policy(config(folder, "qlora"))
    assert adapted(skeleton) == adapted(policy)
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapted(policy)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}, "whatever PEFT takes experts for"
    experts, linear = (sum(tensor.weights for tensor in expert_tensors(policy)), 0)
    for name, module in skeleton.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head") and ".lora_" not in name:
            linear += module.weight.numel()
    plain = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(folder).parameters())
    standing = standing_bytes(skeleton, "qlora", needs_reference=True)
    wanted = 4 * (plain - experts - linear) + NF4_BYTES * (experts + linear)
    buffers = sum(buffer.nbytes for buffer in skeleton.buffers())
    assert standing.weights == pytest.approx(wanted + buffers, rel=1e-4)
    step = StepShape(prompts=1, privileged=0, rollouts=2, max_tokens=1000, packing="shared_prefix")
    planned = fullest(step_packs(step, Lengths(prompt=20, trace=0, trajectory=10)))
    scoring = ScoringConfig(head_chunk=64, with_entropy=False, with_reference=False)
    taken = {
        adapter: update_bytes(
            policy_skeleton(config(folder, adapter)), planned, scoring, device_type="cpu", gradients_exist=False
        ).saved
        for adapter in ("lora", "qlora")
    }
    # Without checkpointing the backward pass keeps all experts in the type that they compute in, for each forward.
    forwards = 2 if kind == "GptOssConfig" else 1  # its rows run one at a time
    assert taken["qlora"] - taken["lora"] == pytest.approx(forwards * 4 * experts, rel=0.01)


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_adapter_of_experts_is_refused_before_weights_are_read(adapter, tmp_path):
    config_of("Qwen3MoeConfig", TEXT | MODELS["Qwen3MoeConfig"]).save_pretrained(tmp_path)  # there are no weights
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    policy = policy_skeleton(config(tmp_path, adapter, target_modules=["q_proj", "v_proj"]))
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapted(policy)} == {"q_proj", "v_proj"}
    try:  # PEFT before 0.19 takes them for nothing but linear layers, and finds none
        policy_skeleton(config(tmp_path, adapter, target_modules=names))
    except ValueError:
        with pytest.raises(ValueError, match=r"policy.target_modules names experts, .* \(down_proj, gate_up_proj\)"):
            load_policy(config(tmp_path, adapter, target_modules=names))


def test_active_experts_are_read_from_every_family_s_config():
    found = {kind: experts_per_token(config_of(kind, TEXT | MODELS[kind])) for kind in MODELS}
    assert set(found.values()) == {(2, 4)}
    assert experts_per_token(config_of("LlamaConfig", TEXT)) is None
    if hasattr(transformers, "Gemma4TextConfig"):
        gemma = {**TEXT, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3}
        assert experts_per_token(transformers.Gemma4TextConfig(**gemma)) == (3, 8)
        assert experts_per_token(transformers.Gemma4TextConfig(**TEXT)) is None


@pytest.mark.parametrize(
    ("given", "adapter", "sentence"),
    [
        (
            {"quant_method": "mxfp4"},
            "qlora",
            r"come in mxfp4 and cannot be put into NF4 .*Mxfp4Config\(",
        ),
        ({"quant_method": "fp8"}, "qlora", r"come in fp8 and cannot be put into NF4 .*FineGrainedFP8Config"),
        ({"quant_method": "gptq", "bits": 4}, "lora", "come quantised by gptq, which cannot be trained here"),
        ({"quant_method": "awq", "bits": 4}, "qlora", "come quantised by awq, which cannot be trained here"),
        ({"load_in_8bit": True}, "lora", "come quantised by bitsandbytes_8bit"),
        ({"load_in_4bit": True}, "lora", "come in 4 bits, and policy.adapter is 'lora'; set it to 'qlora'"),
        ({"load_in_4bit": True}, "full", "come in 4 bits, and policy.adapter is 'full'; set it to 'qlora'"),
    ],
)
def test_weights_that_come_quantised_are_refused_before_they_are_read(given, adapter, sentence, tmp_path):
    model = config_of("LlamaConfig", TEXT)
    model.quantization_config = given
    model.save_pretrained(tmp_path)  # there are no weights
    for load in (load_policy, policy_skeleton):
        with pytest.raises(ValueError, match=sentence):
            load(config(tmp_path, adapter))


def test_a_base_that_comes_in_nf4_is_trained_by_qlora(tmp_path):
    plain = saved(config_of("LlamaConfig", TEXT), tmp_path / "plain")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=nf4, dtype=torch.float32)
    model.save_pretrained(tmp_path / "nf4")
    ours, theirs = (load_policy(config(folder, "qlora")) for folder in (plain, tmp_path / "nf4"))
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ROW).logits, theirs(input_ids=ROW).logits)
    planned = [
        standing_bytes(policy_skeleton(config(folder, "qlora")), "qlora", needs_reference=True)
        for folder in (plain, tmp_path / "nf4")
    ]
    assert planned[0] == planned[1]


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.filterwarnings("ignore:.*experts kept as one tensor")
def test_gpt_oss_as_it_is_published_is_trained_in_16_bits(tmp_path):
    """In MXFP4: two values a byte, the lower half first, and a power of two for 32 of them."""
    folder = saved(config_of("GptOssConfig", TEXT | MODELS["GptOssConfig"]), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    wanted = {}
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = weights.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 128, (experts, outer, inner // 32), dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        halves = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
        values = FP4[halves] * 2.0 ** (scales.float() - 127)[..., None]
        wanted[name] = values.flatten(-2).transpose(1, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoConfig.from_pretrained(folder)
    model.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    model.save_pretrained(tmp_path)
    policy = load_policy(config(folder, "lora"))
    read = {name: weight for name, weight in policy.get_base_model().named_parameters() if name in wanted}
    assert set(read) == set(wanted)
    for name, weight in read.items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=0)
    assert getattr(policy.config, "quantization_config", None) is None

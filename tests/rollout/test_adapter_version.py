"""The adapter as it is handed over: never twice under one name, never merged, and the same on another base's twin."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_vllm_server import LORA, STOP, adapted, assert_same, play
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from vllm_protocol_server import ProtocolServer

from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer, policy_source
from pact_lightning.rollout.samplers.base import LentPolicy, SamplingConfig
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.rollout.samplers.vllm.turns import check_has_adapter, saved_adapter


def test_no_version_shares_anything_with_another_and_none_stays(tmp_path):
    model = adapted()
    versions = []
    for _ in range(3):
        with saved_adapter(model, str(tmp_path)) as version:
            assert {path.name for path in version.folder.iterdir()} >= {
                "adapter_model.safetensors",
                "adapter_config.json",
            }
            versions.append(version)
    for part in ("name", "number", "folder"):
        assert len({getattr(version, part) for version in versions}) == 3
    assert all(version.name.endswith(f"@{version.number}") for version in versions)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_holds_the_adapters_present_weights_and_no_others():
    model = adapted()
    with saved_adapter(model) as version:
        saved = load_file(version.folder / "adapter_model.safetensors")
        config = json.loads((version.folder / "adapter_config.json").read_text(encoding="utf-8"))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.replace(".default", "") for name in trained} == saved.keys()
    for name, weight in trained.items():
        torch.testing.assert_close(saved[name.replace(".default", "")], weight.detach(), rtol=0, atol=0)
    assert (config["r"], config["lora_alpha"], config["bias"]) == (LORA.lora_r, LORA.lora_alpha, "none")
    assert not any("lm_head" in name or "embed" in name for name in saved)


def test_a_policy_without_an_adapter_is_refused():
    full = PolicyConfig(adapter="full", dtype="float32")
    with pytest.raises(ValueError, match="set it to 'lora' or 'qlora'"):
        check_has_adapter(full)
    with pytest.raises(ValueError, match="no adapter to send"), saved_adapter(load_policy(full)):
        pass


def test_a_qlora_is_sampled_as_trained_on_its_4_bit_base_written_out(tmp_path):
    """As docs/vllm.md says; on the unquantised base the same adapter is another policy."""
    config = PolicyConfig(adapter="qlora", dtype="float32", lora_r=4)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(policy_source(config), quantization_config=nf4, dtype="float32")
    base.dequantize().save_pretrained(tmp_path)
    load_tokenizer(config).save_pretrained(tmp_path)
    model = load_policy(config).eval()
    direct = play(TransformersSampler(model, STOP, SamplingConfig()))
    written_out = PolicyConfig(model=str(tmp_path), adapter="full", dtype="float32")
    policy = LentPolicy(model, config, STOP)
    with ProtocolServer(written_out) as server, server.backend().lend(policy, SamplingConfig()) as sampler:
        assert_same(play(sampler), direct)
    with ProtocolServer() as server, server.backend().lend(policy, SamplingConfig()) as sampler:
        unquantised = play(sampler)
    firsts = [(direct[row][0].logps[0], unquantised[row][0].logps[0]) for row in direct]
    assert max(abs(one - other) for one, other in firsts) > 1e-2

"""Samplers named by a recipe: what is missing or does not fit is one sentence, before the policy is loaded."""

import importlib.util

import pytest
from test_cli_mistakes import refusal  # noqa: F401  # a fixture
from vllm_protocol_server import ProtocolServer

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine

SAMPLER = "model.init_args.sampler"
SERVER = "pact_lightning.VLLMServer"
ENGINE = "pact_lightning.VLLMEngine"

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")


def server(url):
    return {SAMPLER: {"class_path": SERVER, "init_args": {"base_url": url, "retries": 0}}}


@without_vllm
def test_an_engine_without_vllm_names_the_extra(refusal):  # noqa: F811
    assert "pip install 'pact-lightning[vllm]'" in refusal({SAMPLER: {"class_path": ENGINE}})


def test_a_server_that_is_not_there_is_named(refusal):  # noqa: F811
    sentence = refusal(server("http://127.0.0.1:9/v1"))
    assert sentence.startswith("error: the vLLM server http://127.0.0.1:9/v1 cannot be reached, in 1 tries")


def test_a_policy_in_full_and_a_server_without_adapters_are_refused(refusal):  # noqa: F811
    with ProtocolServer(loads_adapters=False) as running:
        full = refusal(server(running.url) | {"model.init_args.policy": {"adapter": "full"}})
        assert "model.policy.adapter is 'full'" in full
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in refusal(server(running.url))


def test_a_field_that_a_sampler_does_not_have_is_named(refusal):  # noqa: F811
    wrong = {SAMPLER: {"class_path": SERVER, "init_args": {"base_url": "http://127.0.0.1:9/v1", "rows": 3}}}
    assert "rows" in refusal(wrong)


def test_a_cap_below_1_is_refused(refusal):  # noqa: F811
    assert "importance_cap must be at least 1" in refusal({"model.init_args.importance_cap": 0.5})


def test_the_engine_refuses_what_vllm_cannot_take(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="adapter is 'full'"):
        VLLMEngine().check(PolicyConfig(adapter="full"))
    gguf = PolicyConfig(model="somewhere", gguf_file="model.gguf")
    with pytest.raises(ValueError, match=r"does not read the GGUF file model.gguf; save the model"):
        VLLMEngine().check(gguf)
    VLLMEngine(base="elsewhere").check(gguf)

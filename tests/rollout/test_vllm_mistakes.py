"""Samplers named by a recipe: what is missing or does not fit is one sentence, before the policy is loaded."""

import importlib.util
import json
import sys

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


QLORA = PolicyConfig(adapter="qlora", dtype="bfloat16")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put a package vllm of a version on the path, with the plugin's entry point or without; neither can sample."""

    def put(version="0.32.0", *, plugin=True):
        monkeypatch.delitem(sys.modules, "vllm", raising=False)
        folder = tmp_path / f"site-{version}-{plugin}"
        (folder / "vllm").mkdir(parents=True)
        (folder / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")
        if plugin:
            info = folder / "vllm_bnb_plugin-0.0.3.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Name: vllm-bnb-plugin\nVersion: 0.0.3\n", encoding="utf-8")
            points = "[vllm.general_plugins]\nbitsandbytes = vllm_bnb_plugin:register\n"
            (info / "entry_points.txt").write_text(points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))

    yield put
    sys.modules.pop("vllm", None)


def test_the_base_of_a_qlora_is_quantised_in_vllm_too(installed):
    installed()
    engine = VLLMEngine(engine_args={"enforce_eager": True})
    engine.check(QLORA)
    arguments = engine.arguments(QLORA)
    assert (arguments["quantization"], arguments["dtype"]) == ("bitsandbytes", "bfloat16")
    assert arguments["enable_lora"]
    assert arguments["enforce_eager"], "the recipe's own arguments"
    others = [
        (VLLMEngine(), PolicyConfig(adapter="lora", dtype="bfloat16")),
        (VLLMEngine(quantize_base=False), QLORA),
        (VLLMEngine(base="bf16-of-nf4"), QLORA),
    ]
    for other, policy in others:
        other.check(policy)
        assert "quantization" not in other.arguments(policy)


@pytest.mark.parametrize(
    ("version", "plugin", "told"),
    [
        ("0.27.1", True, r"needs vLLM 0\.28 or later, and this is 0\.27\.1; upgrade it"),
        pytest.param(
            "0.32.0",
            False,
            r"needs the package vllm-bnb-plugin: pip install 'pact-lightning\[vllm\]'",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("vllm_bnb_plugin") is not None, reason="the plugin is installed here"
            ),
        ),
    ],
)
def test_a_four_bit_base_without_the_plugin_or_with_an_old_vllm_is_refused(installed, version, plugin, told):
    installed(version, plugin=plugin)
    with pytest.raises(ImportError, match=told) as error:
        VLLMEngine().check(QLORA)
    assert "set sampler.quantize_base to false" in str(error.value)
    VLLMEngine(quantize_base=False).check(QLORA)


def test_a_four_bit_base_that_would_differ_in_vllm_is_refused(installed, tmp_path):
    installed()
    with pytest.raises(ValueError, match=r"in bfloat16, and model.policy.dtype is 'auto' \(float32\)"):
        VLLMEngine().check(PolicyConfig(adapter="qlora", model=saved_config(tmp_path, dtype="float32")))
    VLLMEngine().check(PolicyConfig(adapter="qlora", model=saved_config(tmp_path, dtype="bfloat16")))
    experts = saved_config(tmp_path, model_type="qwen3_moe", num_experts=4, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"mixture of experts, and whether vLLM.s plugin .* has not been compared"):
        VLLMEngine().check(PolicyConfig(adapter="qlora", model=experts))
    given = saved_config(tmp_path, dtype="bfloat16", quantization_config={"load_in_4bit": True})
    with pytest.raises(
        ValueError, match=r"come in 4 bits, and whether .* has not been tried; give the model with weights"
    ):
        VLLMEngine().check(PolicyConfig(adapter="qlora", model=given))


def saved_config(folder, model_type="qwen3", **fields):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **fields}), encoding="utf-8")
    return str(folder)


def test_a_level_of_sleep_that_loses_the_weights_is_refused(installed):
    installed()
    with pytest.raises(
        ValueError,
        match=r"sleep_level must be 0 .* or 1 .*, not 2: .* throws the base away, which is loaded once",
    ):
        VLLMEngine(sleep_level=2)
    assert not VLLMEngine(sleep_level=0).arguments(QLORA)["enable_sleep_mode"]


def test_the_engine_refuses_what_vllm_cannot_take(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="adapter is 'full'"):
        VLLMEngine().check(PolicyConfig(adapter="full"))
    gguf = PolicyConfig(model="somewhere", gguf_file="model.gguf")
    with pytest.raises(ValueError, match=r"does not read the GGUF file model.gguf; save the model"):
        VLLMEngine().check(gguf)
    VLLMEngine(base="elsewhere").check(gguf)

"""Loading, the reference and the checkpointed weights, with real adapters and real 4-bit layers."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from jsonargparse import ArgumentParser
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.policy.reference import make_reference, reference_policy
from pact_lightning.policy.state_dict import load_trainable_state, trainable_state

PACK = pack_blocks([Block([5, 6, 7, 8], [[9, 10, 11], [12]], read_prefix=True)], 50)[0]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    """A saved tiny Qwen3; every layer's size is a multiple of NF4's block of 64."""
    return save_tiny(tmp_path_factory.mktemp("model"), tied=request.param)


def save_tiny(path, tied=False):
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=300,
        tie_word_embeddings=tied,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(path)
    return path


def config_for(folder, **changes):
    return PolicyConfig(**({"model": str(folder), "dtype": "float32", "lora_r": 4, "lora_alpha": 8} | changes))


def values(model):
    with torch.no_grad():
        return torch.cat([score.logp for score in token_logprobs(model, PACK)])


def one_step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    sum(score.logp.sum() for score in token_logprobs(model, PACK)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
def test_the_policy_equals_its_reference_at_the_start_and_leaves_it_with_the_first_step(folder, adapter):
    model = load_policy(config_for(folder, adapter=adapter))
    frozen = make_reference(model, adapter)
    assert (frozen is None) == (adapter != "full")
    start = values(model)
    with reference_policy(model, frozen) as reference:
        assert torch.equal(values(reference), start)
    one_step(model)
    with reference_policy(model, frozen) as reference:
        assert torch.equal(values(reference), start)
    assert (values(model) - start).abs().max() > 1e-4


def test_the_policy_starts_as_the_saved_model(folder):
    plain = Qwen3ForCausalLM.from_pretrained(folder)
    expected = plain(torch.tensor([[5, 6, 7, 8, 9, 10, 11]])).logits[0].log_softmax(-1)
    expected = expected[:-1].gather(-1, torch.tensor([6, 7, 8, 9, 10, 11])[:, None])[:, 0]
    torch.testing.assert_close(values(load_policy(config_for(folder)))[:6], expected, rtol=1e-4, atol=1e-5)


def test_qlora_trains_the_adapter_on_4_bit_layers_and_leaves_head_and_embeddings(folder):
    model = load_policy(config_for(folder, adapter="qlora"))
    base = model.get_base_model()
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * 7
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers), "double quantisation"
    assert type(base.lm_head) is nn.Linear
    assert base.lm_head.weight.dtype == base.get_input_embeddings().weight.dtype == torch.float32
    sum(score.logp.sum() for score in token_logprobs(model, PACK)).backward()
    with_grad = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_grad == {name for name, _ in model.named_parameters() if "lora_" in name}
    # At B = 0 only B moves.
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved == {name for name in with_grad if "lora_B" in name}


def test_qlora_in_bfloat16_keeps_float32_adapters(folder):
    model = load_policy(config_for(folder, adapter="qlora", dtype="bfloat16", gradient_checkpointing=True))
    one_step(model)
    kinds = {weight.dtype for name, weight in model.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert torch.isfinite(values(model)).all()


def test_qlora_gradients_equal_those_of_lora_on_the_dequantised_weights(folder):
    """Fresh, and after a rollout-like forward in evaluation mode, which repacks weights on some CPUs."""
    quantised, plain = (load_policy(config_for(folder, adapter=adapter)) for adapter in ("qlora", "lora"))
    plain_layers = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in quantised.named_modules():
            if isinstance(layer, Linear4bit):
                plain_layers[name].weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
        state = {
            name: weight + 0.05 * torch.sin(torch.arange(weight.numel())).view_as(weight)
            for name, weight in trainable_state(plain).items()
        }
        load_trainable_state(quantised, state)
        load_trainable_state(plain, state)
    expected = adapter_gradients(plain)
    assert all(grad.any() for grad in expected.values())
    torch.testing.assert_close(adapter_gradients(quantised), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values(quantised.eval()), values(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter_gradients(quantised), expected, rtol=1e-4, atol=1e-5)
    with reference_policy(quantised) as reference:
        values(reference)
    torch.testing.assert_close(adapter_gradients(quantised.train()), expected, rtol=1e-4, atol=1e-5)


def adapter_gradients(model):
    model.zero_grad()
    sum(score.logp.sum() for score in token_logprobs(model, PACK)).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
def test_gradient_checkpointing_gives_the_same_gradients(folder, adapter):
    states = []
    for checkpointing in (False, True):
        model = load_policy(config_for(folder, adapter=adapter, gradient_checkpointing=checkpointing))
        layers = [m for m in model.modules() if isinstance(m, Qwen3DecoderLayer)]
        assert all(layer.training and layer.gradient_checkpointing is checkpointing for layer in layers)
        one_step(model)
        states.append(trainable_state(model))
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


def test_the_seed_alone_decides_the_adapter(folder):
    torch.manual_seed(1)
    first = trainable_state(load_policy(config_for(folder)))
    following = torch.rand(1)
    torch.manual_seed(2)
    second = trainable_state(load_policy(config_for(folder)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = trainable_state(load_policy(config_for(folder, seed=1)))
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(1)
    load_policy(config_for(folder, seed=5))
    assert torch.equal(torch.rand(1), following), "loading must leave the caller's random numbers alone"


def test_full_weights_are_all_trained(folder):
    model = load_policy(config_for(folder, adapter="full"))
    assert not isinstance(model, PeftModel)
    assert all(weight.requires_grad for weight in model.parameters())


def test_target_modules_can_be_named(folder):
    model = load_policy(config_for(folder, target_modules=["q_proj"]))
    assert {name.split(".")[-4] for name in trainable_state(model)} == {"q_proj"}


def test_the_tokenizer_comes_from_the_same_folder(folder):
    assert load_tokenizer(config_for(folder))("hello world").input_ids == [1, 2]


# The reference


@pytest.mark.parametrize("fails", [False, True])
def test_the_reference_gives_the_policy_back_as_it_was(folder, fails):
    model = load_policy(config_for(folder, lora_dropout=0.5)).train()
    model.get_base_model().model.norm.eval()
    one_step(model)
    frozen_on_purpose = next(weight for weight in model.parameters() if weight.requires_grad)
    frozen_on_purpose.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    try:
        with reference_policy(model) as reference:
            assert not any(module.training for module in reference.modules())
            assert not torch.is_grad_enabled()
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags
    assert torch.is_grad_enabled()
    with reference_policy(model):
        off = values(model)
    assert not torch.equal(off, values(model.eval())), "the adapter must be on again"


def test_a_policy_without_adapter_needs_a_copy(folder):
    model = load_policy(config_for(folder, adapter="full"))
    with pytest.raises(ValueError, match="make it by make_reference"), reference_policy(model):
        pass


# Checkpointed weights


@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
def test_trained_weights_survive_the_round_trip(folder, adapter, tmp_path):
    trained = load_policy(config_for(folder, adapter=adapter))
    one_step(trained)
    torch.save(trainable_state(trained), tmp_path / "state.pt")
    fresh = load_policy(config_for(folder, adapter=adapter, seed=9))
    assert not torch.equal(values(fresh), values(trained))
    load_trainable_state(fresh, torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(values(fresh), values(trained))


def test_the_state_of_an_adapter_is_the_adapter_alone(folder):
    state = trainable_state(load_policy(config_for(folder)))
    assert len(state) == 2 * 7 * 2
    assert all("lora_A" in name or "lora_B" in name for name in state)


def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied(folder):
    model = load_policy(config_for(folder))
    state = {name: weight + 1 for name, weight in trainable_state(model).items()}
    before = values(model)
    lost = sorted(state)[0]
    with pytest.raises(ValueError, match=f"missing {lost}, unexpected stranger"):
        load_trainable_state(
            model, {name: w for name, w in state.items() if name != lost} | {"stranger": torch.ones(1)}
        )
    with pytest.raises(ValueError, match=r"has shape \(8, 64\), the policy's \(4, 64\)"):
        load_trainable_state(model, trainable_state(load_policy(config_for(folder, lora_r=8))))
    assert torch.equal(values(model), before)


def test_a_frozen_model_has_no_state():
    with pytest.raises(ValueError, match="no weight that requires gradient"):
        trainable_state(nn.Linear(2, 2).requires_grad_(False))


# Bad input


@pytest.mark.parametrize("load", [load_policy, load_tokenizer])
def test_a_missing_folder_is_one_sentence(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^there is no model folder .*nowhere; set policy.model [^.]*$"):
        load(PolicyConfig(model=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(PolicyConfig(model=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"has no model\.gguf"):
        load(PolicyConfig(model=str(tmp_path), gguf_file="model.gguf"))


def test_relative_paths_are_folders_and_not_hub_ids():
    with pytest.raises(FileNotFoundError, match="there is no model folder nowhere"):
        load_policy(PolicyConfig(model="./nowhere"))


def test_4_bit_of_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match="a GGUF file cannot be quantised"):
        load_policy(PolicyConfig(model=str(tmp_path), gguf_file="model.gguf", adapter="qlora"))


def test_the_configuration_parses_from_the_command_line():
    parser = ArgumentParser()
    parser.add_argument("--policy", type=PolicyConfig)
    parsed = parser.parse_args(["--policy.adapter=qlora", "--policy.target_modules=[q_proj,v_proj]"])
    config = parser.instantiate_classes(parsed).policy
    assert config == PolicyConfig(adapter="qlora", target_modules=["q_proj", "v_proj"])

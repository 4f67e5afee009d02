"""Losses and gradients on a device equal those of plain rows on the CPU in float32."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from hand_made import FULL, LORA, hand_made_group, prepared
from on_device import DEVICES, far
from plain_pact import RENDERER
from torch.nn.functional import cross_entropy

from pact_lightning.policy.loading import PolicyConfig, load_policy, made_trainable
from pact_lightning.policy.logprobs import chunked_logprobs

QLORA = replace(LORA, adapter="qlora")
# Of a gradient's length. In bfloat16 every product of eight layers is rounded to 3 digits.
ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}


def update(policy, device, **arguments):
    """The loss of a group and its gradients, by name; half of the group's terms need its trace."""
    module = prepared(policy, 0.02, anchor_probability=0.0, **arguments).to(device)
    group = hand_made_group(RENDERER, 1)
    module.prepare_phase([group], optimizer_steps=1)
    _, sums = module.accumulate_gradients([group], torch.autograd.backward)
    found = {name: weight.grad for name, weight in module.model.named_parameters() if weight.grad is not None}
    assert {gradient.device.type for gradient in found.values()} == {device}
    return module, sums["loss"], found


def together(gradients):
    return torch.cat([gradients[name].flatten().cpu().float() for name in sorted(gradients)])


@pytest.fixture(scope="module")
def expected():
    _, loss, gradients = update(LORA, "cpu", packing="rows", attention="two_calls")
    return loss, together(gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["two_calls", "flex", "rows"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_way_gives_what_plain_rows_on_a_cpu_give(device, way, dtype, expected):
    if way == "flex" and device == "cpu":
        pytest.skip("torch compiles no backward pass of FlexAttention for CPUs")
    ways = {"packing": "rows"} if way == "rows" else {"attention": way}
    module, loss, gradients = update(replace(LORA, dtype=dtype), device, **ways)
    assert module.attention.flex_taken is (True if way == "flex" else None)
    assert loss == pytest.approx(expected[0], rel=ALLOWED[dtype], abs=ALLOWED[dtype] / 10)
    assert far(together(gradients), expected[1]) < ALLOWED[dtype]


@pytest.mark.parametrize("saver", ["gradient_checkpointing", "offload_activations", "full weights"])
@pytest.mark.parametrize("device", DEVICES)
def test_savers_of_memory_and_full_weights_give_the_same(device, saver, expected):
    policy = replace(LORA, gradient_checkpointing=saver != "full weights")
    offload = {"offload_activations": saver == "offload_activations"}
    if saver == "full weights":
        policy = FULL
        _, loss, gradients = update(FULL, "cpu", packing="rows", attention="two_calls")
        expected = loss, together(gradients)
    _, loss, gradients = update(policy, device, attention="two_calls", **offload)
    assert loss == pytest.approx(expected[0], rel=1e-3, abs=1e-4)
    assert far(together(gradients), expected[1]) < 1e-3


def dequantised(model):
    """The weight of every 4-bit layer as the numbers that it stands for, by the layer's name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) > 20
    return {name: dequantize_4bit(layer.weight.data, layer.weight.quant_state) for name, layer in layers.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_an_adapter_on_4_bits_gets_the_gradient_of_one_on_the_dequantised_weights(device, dtype):
    module, loss, gradients = update(replace(QLORA, dtype=dtype), device)
    assert gradients.keys() == {name for name, weight in module.model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name and gradient.dtype == torch.float32 for name, gradient in gradients.items())

    plain = prepared(LORA, 0.02, anchor_probability=0.0, attention="two_calls")
    weights = dict(plain.model.named_modules())
    with torch.no_grad():
        for name, weight in dequantised(module.model).items():
            weights[name].weight.copy_(weight)
    group = hand_made_group(RENDERER, 1)
    plain.prepare_phase([group], optimizer_steps=1)
    _, sums = plain.accumulate_gradients([group], torch.autograd.backward)
    wanted = {name: weight.grad for name, weight in plain.model.named_parameters() if weight.grad is not None}
    assert loss == pytest.approx(sums["loss"], rel=ALLOWED[dtype], abs=ALLOWED[dtype] / 10)
    assert far(together(gradients), together(wanted)) < ALLOWED[dtype]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_head_in_chunks_is_the_head_at_once(device, dtype, frozen):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator)
    weight = torch.randn(1000, 64, generator=generator) / 8
    targets, upstream = torch.randint(1000, (300,), generator=generator), torch.randn(300, generator=generator)
    kind = getattr(torch, dtype)
    given = [hidden.to(device, kind).requires_grad_(), weight.to(device, kind).requires_grad_(not frozen)]
    exact = [tensor.detach().cpu().double().requires_grad_() for tensor in given]  # the same rounded numbers
    scores = chunked_logprobs(*given, targets.to(device), temperature=0.7, chunk_size=128, with_entropy=not frozen)
    logits = exact[0] @ exact[1].T / 0.7
    wanted = -cross_entropy(logits, targets, reduction="none")
    assert far(scores.logp, wanted) < ALLOWED[dtype] / 10
    if not frozen:
        assert far(scores.entropy, torch.distributions.Categorical(logits=logits).entropy()) < ALLOWED[dtype] / 10
    (scores.logp * upstream.to(device)).sum().backward()
    (wanted * upstream.double()).sum().backward()
    for tensor, known in zip(given[: 1 if frozen else 2], exact, strict=False):
        assert tensor.grad.device.type == device
        assert far(tensor.grad, known.grad) < ALLOWED[dtype] / 5


def test_a_seeds_first_weights_do_not_depend_on_the_default_device():
    """Lightning loads the policy with the run's device as the default one; ``meta`` stands for a card here."""
    first = {name: weight for name, weight in load_policy(LORA).named_parameters() if ".lora_A" in name}
    base = load_policy(FULL)
    with torch.device("meta"):
        again = dict(made_trainable(base, LORA).named_parameters())
    assert len(first) > 20
    for name, weight in first.items():
        assert torch.equal(again[name], weight)


@pytest.mark.gpu
def test_a_seeds_first_weights_are_the_same_on_a_card():
    here = dict(load_policy(PolicyConfig(seed=3)).named_parameters())
    with torch.device("cuda"):
        there = dict(load_policy(PolicyConfig(seed=3)).named_parameters())
    assert {weight.device.type for weight in there.values()} == {"cuda"}
    assert all(torch.equal(there[name].cpu(), weight) for name, weight in here.items())

"""Rollouts on a device are those of the CPU, and tools run beside a process that holds a card."""

import pytest
import torch
from on_device import DEVICES
from test_sampler import SamplingConfig, drive, make_jobs, recomputed, tiny
from torch import nn

from pact_lightning.environments.sandbox.code_tools import CodeToolEnvironment
from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.rollout.samplers.base import TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler, draw_tokens


@pytest.mark.parametrize("device", DEVICES)
def test_the_tokens_drawn_are_those_of_the_cpu(device):
    """In float64, so that no draw is a matter of rounding; rows refilled and prefills in parts."""
    jobs = make_jobs()
    expected = drive(tiny(), jobs, 3, prefill_tokens=20)
    found = drive(tiny().to(device), jobs, 3, prefill_tokens=20)
    assert [result.ids for result in found] == [result.ids for result in expected]
    logps = [torch.tensor(result.logps, dtype=torch.float64) for result in found]
    torch.testing.assert_close(logps, [torch.tensor(result.logps, dtype=torch.float64) for result in expected])
    for job, result, logp in zip(jobs, found, logps, strict=True):
        torch.testing.assert_close(
            recomputed(tiny().to(device), job, result).cpu().double(), logp, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("device", DEVICES)
def test_greedy_is_what_transformers_generates(device, adapter):
    model = load_policy(PolicyConfig(adapter=adapter, dtype="float32", lora_r=4)).to(device).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:  # an adapter that does something
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 50)
    prompts = [list(range(5, 30)), list(range(40, 95))]
    sampler = TransformersSampler(model, [], SamplingConfig(greedy=True))
    sampler.submit([TurnRequest(row, ids, 12, row) for row, ids in enumerate(prompts)])
    found = {}
    while len(found) < len(prompts):
        found |= {output.row: output.ids for output in sampler.step()}
    for row, ids in enumerate(prompts):
        given = torch.tensor([ids], device=device)
        mask = torch.ones_like(given)
        whole = model.generate(
            input_ids=given, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
        )
        assert whole[0, len(ids) :].tolist() == found[row]


@pytest.mark.parametrize("device", DEVICES)
def test_draws_work_where_torch_is_told_to_be_deterministic(device):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(5, 1000, generator=generator)
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    expected = draw_tokens(probabilities, uniforms)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(draw_tokens(probabilities.to(device), uniforms.to(device)).cpu(), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
def test_tools_run_in_their_sandbox_beside_a_process_that_computes(device):
    layer = nn.Linear(8, 8).to(device)
    assert bool(layer(torch.ones(2, 8, device=device)).isfinite().all())
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = {"type": "function", "function": {"name": "double", "parameters": parameters}}
    environment = CodeToolEnvironment({"double": "def double(a):\n    return 2 * a\n"}, [schema], timeout_s=30.0)
    assert environment.call("double", {"a": 21}).text == "42"

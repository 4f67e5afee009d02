"""Offloaded activations, the 8-bit optimiser and the allocator: the same training with less memory."""

from dataclasses import replace

import pytest
import torch
from hand_made import FULL, LORA, gradients, hand_made_group, prepared
from plain_pact import RENDERER
from torch import nn

from pact_lightning.policy.memory import offloaded_activations
from pact_lightning.update.optimizer import OptimizerConfig


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
def test_offloading_changes_no_gradient(policy, checkpointing):
    policy = replace(policy, gradient_checkpointing=checkpointing)
    found = [
        gradients(
            prepared(policy, 0.02, anchor_probability=0.0, offload_activations=offload), hand_made_group(RENDERER, 1)
        )
        for offload in (False, True)
    ]
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 1e-2
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_offloading_moves_activations_and_leaves_weights(monkeypatch):
    moved = []

    class Recording(torch.autograd.graph.save_on_cpu):
        def __init__(self, pin_memory):
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (moved.append(tensor.shape), pack(tensor))[1]

    monkeypatch.setattr("pact_lightning.policy.memory.save_on_cpu", Recording)
    layer = nn.Linear(3, 5)
    states = torch.randn(7, 3, requires_grad=True)
    with offloaded_activations(layer):
        loss = (layer(states) ** 2).sum()
    loss.backward()
    assert (7, 3) in moved
    assert (7, 5) in moved
    assert not {(5, 3), (3, 5)} & set(map(tuple, moved))


def test_moments_of_8_bits_train_almost_as_those_of_32():
    ends = []
    for bits in (8, 32):
        torch.manual_seed(0)
        layer = nn.Linear(128, 128)
        optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, bits=bits).over(list(layer.parameters()))
        inputs, wanted = torch.randn(64, 128), torch.randn(64, 128)
        for _ in range(20):
            loss = ((layer(inputs) - wanted) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(loss.item())
        moment = next(value for name, value in optimizer.state[layer.weight].items() if name in ("state1", "exp_avg"))
        assert moment.dtype == (torch.uint8 if bits == 8 else torch.float32)
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    assert ends[1] < 0.7


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.bits is 8 or 32, not 4"):
        OptimizerConfig(bits=4)

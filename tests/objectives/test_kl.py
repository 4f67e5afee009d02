"""The k3 estimator: by hand, in expectation, at its clamp."""

from math import exp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.objectives.kl import k3_kl


def one_token(logp, ref, **options):
    policy = torch.tensor([[logp]], dtype=torch.float64, requires_grad=True)
    loss, metrics = k3_kl(policy, torch.tensor([[ref]], dtype=torch.float64), torch.ones(1, 1), **options)
    (grad,) = torch.autograd.grad(loss, policy)
    return loss.item(), grad.item(), metrics


@pytest.mark.parametrize("gap", [0.0, 0.3, -0.7, 9.0, -9.0])
def test_value_and_gradient_by_hand(gap):
    value, grad, metrics = one_token(-1.0, -1.0 + gap)
    assert value == pytest.approx(exp(gap) - gap - 1, abs=1e-12)
    assert grad == pytest.approx(1 - exp(gap), abs=1e-12)
    assert metrics["kl"].item() == value
    assert metrics["kl_clamped"].item() == 0.0


@pytest.mark.parametrize(("gap", "at"), [(50.0, 10.0), (-50.0, -10.0)])
def test_the_log_ratio_is_clamped(gap, at):
    value, grad, metrics = one_token(-60.0, -60.0 + gap)
    assert value == pytest.approx(exp(at) - at - 1)
    assert grad == 0.0
    assert metrics["kl_clamped"].item() == 1.0
    assert one_token(0.0, 2.0, clamp=1.0)[0] == pytest.approx(exp(1) - 2)


@given(st.lists(st.floats(-30, 0), min_size=2, max_size=8), st.floats(-3, 3))
def test_never_negative_and_zero_for_equal_policies(values, gap):
    logp = torch.tensor([values], dtype=torch.float64)
    mask = torch.ones_like(logp)
    assert k3_kl(logp, logp, mask)[0].item() == 0.0
    assert k3_kl(logp, logp + gap, mask)[0].item() >= 0.0


def test_unbiased_for_the_divergence_on_the_policys_own_samples():
    # expectation over all tokens of a small vocabulary, exactly, against torch's own KL
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    each = [k3_kl(policy[None, i : i + 1], ref[None, i : i + 1], torch.ones(1, 1))[0] for i in range(6)]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=ref)
    )
    assert (torch.stack(each) * policy.exp()).sum().item() == pytest.approx(expected.item(), abs=1e-12)


def test_aggregates_as_the_surrogate_does_and_ignores_the_rest():
    logp = torch.tensor([[-1.0, -1.0, float("-inf")], [-1.0, float("nan"), 0.0]], requires_grad=True)
    ref = torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, float("nan")]], requires_grad=True)
    loss, metrics = k3_kl(logp, ref, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(((exp(1) - 2) / 2 + (exp(2) - 3)) / 2, rel=1e-6)
    assert logp.grad.tolist() == [
        pytest.approx([0.0, (1 - exp(1)) / 4, 0.0]),
        pytest.approx([(1 - exp(2)) / 2, 0.0, 0.0]),
    ]
    assert ref.grad is None
    assert not metrics["kl"].requires_grad


def test_bad_arguments_are_named():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="clamp limits the log-ratio"):
        k3_kl(zeros, zeros, torch.ones(2, 3), clamp=0.0)
    with pytest.raises(ValueError, match="ref_logp and mask must both"):
        k3_kl(zeros, zeros[:, 1:], torch.ones(2, 3))
    with pytest.raises(ValueError, match="selects no token"):
        k3_kl(zeros, zeros, zeros)

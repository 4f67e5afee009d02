"""Truncated importance weights: what they are, what they do to the surrogate, and when they are 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.objectives.importance import sampling_mismatch, truncated_importance_weights
from pact_lightning.objectives.surrogate import clipped_surrogate


def example(seed=0, shape=(3, 7), distance=0.5):
    generator = torch.Generator().manual_seed(seed)
    sampled = -torch.rand(shape, generator=generator) * 3
    logp = sampled + distance * torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.3
    mask[0, 0] = True
    return logp, sampled, mask


@given(seed=st.integers(0, 200), cap=st.floats(1.0, 5.0))
def test_a_weight_is_the_ratio_up_to_the_cap(seed, cap):
    logp, sampled, mask = example(seed)
    weights, metrics = truncated_importance_weights(logp, sampled, mask, cap=cap)
    ratio = (logp.double() - sampled.double()).exp()
    torch.testing.assert_close(weights[mask].double(), ratio[mask].clamp(max=cap), rtol=1e-5, atol=1e-6)
    assert (weights[~mask] == 1).all()
    assert metrics["capped"] == pytest.approx((ratio[mask] > cap).double().mean().item(), abs=1e-6)
    assert metrics["weight_mean"] == pytest.approx(weights[mask].mean().item())


def test_where_sampler_and_trainer_agree_all_weights_are_1_and_the_mismatch_is_0():
    logp, _, mask = example()
    weights, metrics = truncated_importance_weights(logp, logp.clone(), mask, cap=2.0)
    assert (weights == 1).all()
    assert metrics == {"weight_mean": 1.0, "capped": 0.0}
    assert sampling_mismatch(logp, logp.clone(), mask) == {"abs_difference": 0.0, "kl": 0.0, "ratio_max": 1.0}


@pytest.mark.parametrize("dual_clip", [3.0, None])
def test_weighted_advantages_are_weighted_terms(dual_clip):
    """The surrogate's term of each token times its weight, also where a clip holds; computed term by term."""
    logp, sampled, mask = example(3)
    old, advantages = example(4)[0], torch.randn(mask.shape, generator=torch.Generator().manual_seed(5))
    weights, _ = truncated_importance_weights(old, sampled, mask, cap=1.5)
    loss, _ = clipped_surrogate(logp, old, advantages * weights, mask, dual_clip=dual_clip)
    total = 0.0
    for row in range(len(mask)):
        terms = []
        for n in mask[row].nonzero().flatten():
            one = (slice(row, row + 1), slice(int(n), int(n) + 1))
            only = torch.ones(1, 1)
            term, _ = clipped_surrogate(logp[one], old[one], advantages[one], only, dual_clip=dual_clip)
            terms.append(term * weights[row, n])
        total += torch.stack(terms).mean() / len(mask) if terms else 0.0
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_into_the_weights():
    logp, sampled, mask = example()
    logp.requires_grad_()
    assert not truncated_importance_weights(logp, sampled, mask, cap=2.0)[0].requires_grad
    assert not any(value.requires_grad for value in sampling_mismatch(logp, sampled, mask).values())


def test_weights_make_the_expectation_under_the_sampler_that_under_the_trainer():
    """On a distribution over eight tokens, computed exactly; the cap takes away what lies above it."""
    generator = torch.Generator().manual_seed(0)
    trainer = torch.randn(8, generator=generator).log_softmax(-1)
    sampler = (trainer + 0.3 * torch.randn(8, generator=generator)).log_softmax(-1)
    value = torch.randn(8, generator=generator)
    mask = torch.ones(1, 8)
    weights, _ = truncated_importance_weights(trainer[None], sampler[None], mask, cap=100.0)
    torch.testing.assert_close((sampler.exp() * weights[0] * value).sum(), (trainer.exp() * value).sum())
    cut, _ = truncated_importance_weights(trainer[None], sampler[None], mask, cap=1.1)
    assert (cut <= 1.1).all()
    assert (cut < weights).any()


def test_the_kl_is_that_of_the_sampler_from_the_trainer():
    """The mean of the k3 estimate over the sampler's own distribution is the exact divergence."""
    generator = torch.Generator().manual_seed(1)
    trainer = torch.randn(6, generator=generator).log_softmax(-1)
    sampler = torch.randn(6, generator=generator).log_softmax(-1)
    estimates = [sampling_mismatch(trainer[n].view(1, 1), sampler[n].view(1, 1), torch.ones(1, 1)) for n in range(6)]
    expected = (sampler.exp() * (sampler - trainer)).sum()
    found = sum(sampler[n].exp() * estimates[n]["kl"] for n in range(6))
    torch.testing.assert_close(found, expected)


def test_what_lies_outside_the_mask_is_never_read():
    logp, sampled, mask = example()
    expected = sampling_mismatch(logp, sampled, mask)
    logp[~mask], sampled[~mask] = float("nan"), float("inf")
    assert sampling_mismatch(logp, sampled, mask) == expected
    assert torch.isfinite(truncated_importance_weights(logp, sampled, mask, cap=2.0)[0]).all()


def test_a_cap_below_1_and_unequal_shapes_are_refused():
    logp, sampled, mask = example()
    with pytest.raises(ValueError, match="at least 1, not 0"):
        truncated_importance_weights(logp, sampled, mask, cap=0.5)
    with pytest.raises(ValueError, match="sampled_logp and mask"):
        sampling_mismatch(logp, sampled[:2], mask)

"""Component-aware SFT: weights per component, the two normalisers, the skipped term."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.objectives.annealing import Supervision
from pact_lightning.objectives.component_sft import component_sft_loss, likelihood_weights, sft_weights
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.types.trajectory import Component

C = Component
COMPONENTS = [C.PROMPT, C.REASONING, C.REASONING, C.DELIMITER, C.TOOL_CALL, C.TOOL_CALL, C.OBSERVATION, C.ANSWER]
MIN_LEVELS = [5, 1, 4, 5, 5, 5, 5, 5]


def trace(level, scale, **options):
    components = torch.tensor([int(c) for c in COMPONENTS])
    return sft_weights(components, torch.tensor(MIN_LEVELS), Supervision(level, scale), **options)


def loss_and_grad(weights, normalizer="weight_sum", seed=0):
    generator = torch.Generator().manual_seed(seed)
    logp = (-torch.rand(len(weights), generator=generator, dtype=torch.float64)).requires_grad_()
    loss, metrics = component_sft_loss(logp, weights, normalizer=normalizer)
    (grad,) = torch.autograd.grad(loss, logp)
    return loss.item(), grad, {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(("level", "reasoning"), [(4, [1.0, 1.0]), (3, [1.0, 0.0]), (1, [1.0, 0.0]), (0, [0.0, 0.0])])
def test_weights_by_component_and_level(level, reasoning):
    assert trace(level, 0.5).tolist() == [0.0, *reasoning, 0.0, 0.5, 0.5, 0.0, 0.0]


def test_delimiters_weigh_as_tool_calls_on_demand():
    assert trace(1, 0.5, supervise_delimiters=True).tolist() == [0.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0]


@given(st.lists(st.tuples(st.sampled_from(Component), st.integers(1, 5)), min_size=1), st.integers(0, 3))
def test_levels_are_cumulative_and_never_reach_tokens_marked_never(tokens, level):
    components = torch.tensor([int(c) for c, _ in tokens])
    min_levels = torch.tensor([m for _, m in tokens])
    low = sft_weights(components, min_levels, Supervision(level, 0.3))
    high = sft_weights(components, min_levels, Supervision(level + 1, 0.3))
    assert (low <= high).all()
    context = (components == C.PROMPT) | (components == C.OBSERVATION)
    never = (components == C.REASONING) & (min_levels == 5)
    assert high[context | never].abs().sum() == 0


def test_loss_by_hand():
    logp = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    weights = torch.tensor([1.0, 0.5, 0.0, 0.5])
    loss, metrics = component_sft_loss(logp, weights)
    assert loss.item() == pytest.approx((1.0 + 1.0 + 2.0) / 2.0)
    assert {name: value.item() for name, value in metrics.items()} == {"tokens": 3, "weight_sum": 2, "skipped": 0}
    assert component_sft_loss(logp, weights, normalizer="token_count")[0].item() == pytest.approx(4.0 / 3.0)


def test_with_equal_weights_it_is_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 5, generator=generator)
    targets = torch.randint(5, (7,), generator=generator)
    logp = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    expected = torch.nn.functional.cross_entropy(logits, targets).item()
    for normalizer in ("weight_sum", "token_count"):
        assert component_sft_loss(logp, torch.ones(7), normalizer=normalizer)[0].item() == pytest.approx(expected)


def test_at_l0_the_tool_call_scale_cancels_under_weight_sum():
    """The normaliser trap: from here on annealing the scale changes nothing, neither value nor gradient."""
    strong, strong_grad, _ = loss_and_grad(trace(0, 0.8))
    weak, weak_grad, _ = loss_and_grad(trace(0, 0.2))
    assert strong == pytest.approx(weak, rel=1e-6)
    torch.testing.assert_close(strong_grad, weak_grad, rtol=1e-6, atol=0)


def test_at_l0_the_tool_call_scale_acts_under_token_count():
    strong, strong_grad, _ = loss_and_grad(trace(0, 0.8), "token_count")
    weak, weak_grad, _ = loss_and_grad(trace(0, 0.2), "token_count")
    assert strong == pytest.approx(4 * weak, rel=1e-6)
    torch.testing.assert_close(strong_grad, 4 * weak_grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalizer", ["weight_sum", "token_count"])
def test_with_active_reasoning_the_scale_acts_under_both(normalizer):
    _, strong, _ = loss_and_grad(trace(4, 0.8), normalizer)
    _, weak, _ = loss_and_grad(trace(4, 0.2), normalizer)
    count = {"weight_sum": (2 + 2 * 0.8, 2 + 2 * 0.2), "token_count": (4, 4)}[normalizer]
    assert strong[4].item() == pytest.approx(-0.8 / count[0])
    assert weak[4].item() == pytest.approx(-0.2 / count[1])


@pytest.mark.parametrize("normalizer", ["weight_sum", "token_count"])
@pytest.mark.parametrize("weights", [torch.zeros(3), torch.zeros(0)])
def test_without_weight_the_term_is_skipped(normalizer, weights):
    loss, grad, metrics = loss_and_grad(weights, normalizer)
    assert loss == 0.0
    assert grad.tolist() == [0.0] * len(weights)
    assert metrics == {"tokens": 0, "weight_sum": 0, "skipped": 1}


def test_call_supervision_switched_off_at_l0_is_a_skipped_term():
    assert loss_and_grad(trace(0, 0.0))[2]["skipped"] == 1


def test_tokens_without_weight_are_never_read():
    logp = torch.tensor([-1.0, float("-inf"), float("nan")], requires_grad=True)
    loss, _ = component_sft_loss(logp, torch.tensor([0.5, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == 1.0
    assert logp.grad.tolist() == [-1.0, 0.0, 0.0]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"logp and weights must both .* \[2\] and \[3\]"):
        component_sft_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="SFT weights must be finite and >= 0"):
        component_sft_loss(torch.zeros(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="SFT weights must be finite and >= 0"):
        component_sft_loss(torch.zeros(2), torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="unknown normalizer 'mean'; use one of weight_sum, token_count"):
        component_sft_loss(torch.zeros(2), torch.ones(2), normalizer="mean")
    with pytest.raises(ValueError, match="components and min_levels must both"):
        sft_weights(torch.zeros(2), torch.zeros(3), Supervision(0, 0.0))


@pytest.mark.parametrize("normalizer", ["weight_sum", "token_count"])
def test_factors_multiply_the_terms_and_leave_the_divisor(normalizer):
    logp = torch.tensor([-0.2, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    weights, factors = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.3, 0.9, float("nan")], dtype=torch.float64)
    loss, _ = component_sft_loss(logp, weights, normalizer=normalizer, factors=factors)
    divisor = 1.5 if normalizer == "weight_sum" else 2
    assert loss.item() == pytest.approx((0.3 * 0.2 + 0.5 * 0.9 * 3.0) / divisor)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.tolist() == pytest.approx([-0.3 / divisor, -0.45 / divisor, 0.0])


def test_weights_by_probability():
    logp = torch.tensor([0.9, 0.5, 0.05], dtype=torch.float64).log().requires_grad_()
    assert SFTConfig().factors(logp) is None
    phi = SFTConfig(token_weight="chord_phi").factors(logp)
    assert phi.tolist() == pytest.approx([0.09, 0.25, 0.0475])
    trust = SFTConfig(token_weight="trust_region", alpha=0.2).factors(logp)
    assert trust.tolist() == pytest.approx([1.0, 1.0, 0.25])
    assert not trust.requires_grad


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": "all"}, {"token_weight": "phi"}, {"alpha": 0.0}, {"alpha": float("nan")}, {"with_answer": True}],
)
def test_settings_of_the_term_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"model\.sft\."):
        SFTConfig(**wrong)


def test_the_experts_own_tokens_weigh_alike_and_no_others():
    components = torch.tensor([int(component) for component in Component])
    assert likelihood_weights(components).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]

"""The clipped surrogate and its aggregation: worked by hand, and equal to TRL's GRPO loss."""

from collections import defaultdict
from math import exp, log
from types import SimpleNamespace

import pytest
import torch

from pact_lightning.objectives.kl import entropy_bonus, k3_kl
from pact_lightning.objectives.surrogate import clipped_surrogate, group_mean


def group(seed, rollouts=5, tokens=11, spread=0.6):
    """Log-probs whose ratios fall on both sides of every bound, per-token advantages, ragged masks with holes."""
    generator = torch.Generator().manual_seed(seed)

    def randn():
        return torch.randn(rollouts, tokens, generator=generator, dtype=torch.float64)

    logp = (-randn().abs() - 0.1).requires_grad_()
    old, ref = (logp + spread * randn()).detach(), (logp + spread * randn()).detach()
    mask = torch.rand(rollouts, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return logp, old, ref, randn(), mask


def trl_loss(logp, old, ref, advantages, mask, *, beta, delta, clip=(0.2, 0.2)):
    """TRL's own ``_compute_loss``, on a stand-in that holds just the settings it reads."""
    trl = pytest.importorskip("trl")
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta),
        loss_type="grpo",
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics={"train": defaultdict(list)},
    )
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": torch.ones_like(tokens[:, :1]),
        "completion_ids": tokens,
        "completion_mask": torch.ones_like(tokens),
        "tool_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dual_clip", [None, 3.0, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_equal_to_trl_in_value_gradient_and_clip_fractions(seed, dual_clip, beta):
    logp, old, ref, advantages, mask = group(seed)
    bounds = {"clip_low": 0.2, "clip_high": 0.28}
    # TRL's upper bound on the unclipped ratio, delta, acts on negative advantages alone: it is the dual clip.
    theirs, trl_metrics = trl_loss(logp, old, ref, advantages, mask, beta=beta, delta=dual_clip, clip=(0.2, 0.28))
    (their_grad,) = torch.autograd.grad(theirs, logp)

    ours, metrics = clipped_surrogate(logp, old, advantages, mask, dual_clip=dual_clip, **bounds)
    if beta:
        kl, _ = k3_kl(logp, ref, mask)
        ours = ours + beta * kl
    (our_grad,) = torch.autograd.grad(ours, logp)

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
    torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-12)
    assert metrics["clip_low"].item() == pytest.approx(trl_metrics["clip_ratio/low_mean"], abs=1e-6)
    assert metrics["clip_high"].item() == pytest.approx(trl_metrics["clip_ratio/high_mean"], abs=1e-6)
    assert metrics["clip_low"] > 0
    assert metrics["clip_high"] > 0


def test_equal_to_trl_in_single_precision_and_with_one_advantage_per_rollout():
    logp, old, ref, advantages, mask = (t.float() if t.is_floating_point() else t for t in group(7))
    theirs, _ = trl_loss(logp, old, ref, advantages[:, 0], mask, beta=0.04, delta=None)
    ours, _ = clipped_surrogate(logp, old, advantages[:, :1].expand_as(logp), mask, dual_clip=None)
    assert (ours + 0.04 * k3_kl(logp, ref, mask)[0]).item() == pytest.approx(theirs.item(), abs=1e-6)


def one_token(ratio, advantage, **bounds):
    logp = torch.tensor([[log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, metrics = clipped_surrogate(
        logp, torch.zeros(1, 1), torch.tensor([[advantage]], dtype=torch.float64), torch.ones(1, 1), **bounds
    )
    (grad,) = torch.autograd.grad(loss, logp)
    return loss.item(), grad.item(), {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "grad", "stopped"),
    [
        (1.0, 2.0, -2.0, -2.0, None),  # a step down the gradient raises the token's log-probability
        (1.0, -2.0, 2.0, 2.0, None),  # ... and lowers it
        (1.5, 2.0, -2.4, 0.0, "clip_high"),  # 1.2 * 2
        (0.5, 2.0, -1.0, -1.0, None),  # the pessimistic side is never clipped
        (0.5, -2.0, 1.6, 0.0, "clip_low"),  # 0.8 * 2
        (2.5, -2.0, 5.0, 5.0, None),
        (5.0, -2.0, 6.0, 0.0, "clip_dual"),  # 3 * 2 instead of 5 * 2
        (5.0, 0.0, 0.0, 0.0, None),
    ],
)
def test_one_token_by_hand(ratio, advantage, loss, grad, stopped):
    value, slope, metrics = one_token(ratio, advantage)
    assert value == pytest.approx(loss)
    assert slope == pytest.approx(grad)
    for name in ("clip_low", "clip_high", "clip_dual"):
        assert metrics[name] == float(name == stopped)
    assert metrics["ratio_mean"] == metrics["ratio_max"] == pytest.approx(ratio)
    assert metrics["approx_kl"] == pytest.approx(ratio - 1 - log(ratio))


def test_without_dual_clip_a_negative_advantage_has_no_bound():
    assert one_token(5.0, -2.0, dual_clip=None)[:2] == pytest.approx((10.0, 10.0))
    assert one_token(5.0, -2.0, dual_clip=2.0)[:2] == pytest.approx((4.0, 0.0))


def test_asymmetric_bounds():
    assert one_token(1.5, 1.0, clip_high=0.4)[0] == pytest.approx(-1.4)
    assert one_token(0.5, -1.0, clip_low=0.4)[0] == pytest.approx(0.6)


def test_at_the_first_step_the_loss_is_minus_the_mean_advantage():
    logp, _, _, advantages, mask = group(0)
    loss, metrics = clipped_surrogate(logp, logp.detach(), advantages, mask)
    per_rollout = [row[kept].mean() for row, kept in zip(advantages, mask, strict=True)]
    assert loss.item() == pytest.approx(-torch.stack(per_rollout).mean().item())
    assert metrics["ratio_mean"] == 1.0
    assert metrics["approx_kl"] == 0.0
    (grad,) = torch.autograd.grad(loss, logp)
    weight = mask / mask.sum(dim=1, keepdim=True) / len(mask)
    torch.testing.assert_close(grad, -advantages * weight)  # the policy gradient


def test_aggregation_is_over_a_rollouts_tokens_first():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert group_mean(values, mask).item() == pytest.approx((2.0 + 10.0 + 0.0) / 3)  # the empty rollout counts with 0
    assert group_mean(values[:2], mask[:2].bool()).item() == pytest.approx(6.0)


def test_entropy_bonus_rewards_entropy():
    entropy = torch.tensor([[1.0, 3.0], [4.0, 9.0]], requires_grad=True)
    loss, metrics = entropy_bonus(entropy, torch.tensor([[1, 1], [1, 0]]))
    loss.backward()
    assert loss.item() == -3.0
    assert metrics["entropy"].item() == 3.0
    assert entropy.grad.tolist() == [[-0.25, -0.25], [-0.5, 0.0]]


def test_tokens_outside_the_mask_are_never_read():
    logp, old, _, advantages, mask = group(1)
    clean, _ = clipped_surrogate(logp, old, advantages, mask)
    (clean_grad,) = torch.autograd.grad(clean, logp)
    dirty = torch.where(mask, logp.detach(), float("-inf")).requires_grad_()
    hole = torch.where(mask, 0.0, float("nan"))
    loss, metrics = clipped_surrogate(dirty, old + hole, advantages + hole, mask)
    (grad,) = torch.autograd.grad(loss, dirty)
    assert loss.item() == clean.item()
    assert torch.equal(grad, clean_grad)
    assert all(torch.isfinite(value) for value in metrics.values())


def test_no_gradient_into_old_log_probs_or_advantages():
    logp, old, _, advantages, mask = group(2)
    old.requires_grad_()
    advantages.requires_grad_()
    loss, metrics = clipped_surrogate(logp, old, advantages, mask)
    loss.backward()
    assert old.grad is None
    assert advantages.grad is None
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [500.0, -500.0])
def test_an_absurd_ratio_stays_finite(advantage, log_ratio):
    logp = torch.full((1, 2), log_ratio, requires_grad=True)
    loss, metrics = clipped_surrogate(logp, torch.zeros(1, 2), torch.full((1, 2), advantage), torch.ones(1, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert logp.grad.tolist() == [[0.0, 0.0]]
    assert metrics["ratio_max"].item() == pytest.approx(exp(20.0 if log_ratio > 0 else -20.0), rel=1e-5)


def test_an_empty_rollout_gets_no_gradient_and_an_empty_group_is_refused():
    logp, old, _, advantages, mask = group(3)
    mask[1] = False
    clipped_surrogate(logp, old, advantages, mask)[0].backward()
    assert logp.grad[1].abs().sum() == 0
    with pytest.raises(ValueError, match="selects no token in the whole group"):
        clipped_surrogate(logp, old, advantages, torch.zeros_like(mask))


def test_bad_arguments_are_named():
    logp, old, _, advantages, mask = group(4)
    with pytest.raises(ValueError, match=r"advantages and mask must both .* \[5, 10\] and \[5, 11\]"):
        clipped_surrogate(logp, old, advantages[:, 1:], mask)
    with pytest.raises(ValueError, match="logp and mask must both"):
        clipped_surrogate(logp[0], old, advantages, mask[0])
    for bad in ({"clip_low": -0.1}, {"clip_low": 1.1}, {"clip_high": -0.1}):
        with pytest.raises(ValueError, match="0 <= clip_low <= 1 and clip_high >= 0"):
            clipped_surrogate(logp, old, advantages, mask, **bad)
    with pytest.raises(ValueError, match="dual_clip"):
        clipped_surrogate(logp, old, advantages, mask, dual_clip=1.0)

"""The rivals' objectives against their formulas, written out token by token in plain numbers."""

from dataclasses import replace
from math import exp, tanh

import pytest
import torch

from pact_lightning.objectives.aggregation import AggregationConfig, aggregate
from pact_lightning.objectives.cispo import CISPO
from pact_lightning.objectives.gspo import GSPO
from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.rlsd import RLSD
from pact_lightning.objectives.surrogate import FIGURES, ClipConfig, clipped_surrogate
from pact_lightning.objectives.turnsight import TurnSight

NO_DUAL = ClipConfig(0.2, 0.28, None)


def rollouts(seed=0, *, one_advantage=False):
    """Three rollouts in float64 with holes in their masks, ``nan`` in the holes, and ratios beyond every bound."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 7)

    def randn():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(shape, generator=generator) < 0.7
    mask[:, 0] = True
    hole = torch.zeros(shape, dtype=torch.float64).masked_fill(~mask, float("nan"))
    logp = (-randn().abs() - 0.1).requires_grad_()
    old = (logp + 0.5 * randn()).detach() + hole
    turns = torch.tensor([[0, 0, 0, 1, 1, 1, 2]] * 3)
    by_turn = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    advantages = by_turn[:, :1].expand(shape) if one_advantage else by_turn.gather(1, turns)
    return RolloutTokens(logp, old, advantages + hole, mask, turns)


def kept(tokens):
    """The policy tokens of each rollout: (logp, log-ratio, advantage), the log-ratio without gradient."""
    for logp, old, advantage, mask in zip(tokens.logp, tokens.old_logp, tokens.advantages, tokens.mask, strict=True):
        yield [(logp[n], float(logp[n].detach() - old[n]), float(advantage[n])) for n in range(len(mask)) if mask[n]]


def check(tokens, found, expected):
    """Value and gradient are those of the formula."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    (mine,) = torch.autograd.grad(found, tokens.logp)
    (theirs,) = torch.autograd.grad(expected, tokens.logp)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    assert theirs.abs().max() > 1e-3


def mean(tokens, losses, mean_over="rollouts", length=None):
    config = AggregationConfig(mean_over, length)
    return aggregate(losses, tokens.mask, config, rollouts=3, tokens=int(tokens.mask.sum()))


@pytest.mark.parametrize("bounds", [(0.05, 0.08), (0.3, 0.3)])
def test_gspo_clips_the_geometric_mean_of_a_rollouts_ratios(bounds):
    tokens = rollouts(one_advantage=True)
    low, high = bounds
    expected = []
    for row in kept(tokens):
        s = torch.stack([logp - logp.detach() + ratio for logp, ratio, _ in row]).mean().exp()
        advantage = row[0][2]
        expected.append(-torch.min(s * advantage, s.clamp(1 - low, 1 + high) * advantage))
    losses, figures = GSPO().losses(tokens, ClipConfig(low, high, None))
    check(tokens, mean(tokens, losses), torch.stack(expected).mean())
    assert set(figures) == set(FIGURES)


def test_gspo_with_an_advantage_per_turn_weighs_each_tokens_own_gradient():
    tokens = rollouts()
    expected = []
    for row in kept(tokens):
        s = exp(sum(ratio for _, ratio, _ in row) / len(row))
        of_row = [
            s * advantage * (logp - logp.detach() + 1)
            for logp, _, advantage in row  # no bound is met
        ]
        expected.append(-torch.stack(of_row).mean())
    losses, _ = GSPO().losses(tokens, ClipConfig(1.0, 50.0, None))
    check(tokens, mean(tokens, losses), torch.stack(expected).mean())


@pytest.mark.parametrize("high", [0.1, 4.0])
def test_cispo_weighs_log_probabilities_by_a_clipped_ratio_and_no_token_loses_its_gradient(high):
    tokens = rollouts(1)
    terms = [-min(exp(ratio), 1 + high) * advantage * logp for row in kept(tokens) for logp, ratio, advantage in row]
    losses, figures = CISPO().losses(tokens, ClipConfig(1.0, high, None))
    check(tokens, mean(tokens, losses, "tokens"), torch.stack(terms).mean())
    (gradient,) = torch.autograd.grad(CISPO().losses(tokens, ClipConfig(1.0, high, None))[0].sum(), tokens.logp)
    assert bool((gradient != 0)[tokens.mask].all())
    assert set(figures) == set(FIGURES)


def clipped(row, low=0.2, high=0.28):
    for logp, ratio, advantage in row:
        r = (logp - logp.detach() + ratio).exp()
        yield -torch.min(r * advantage, r.clamp(1 - low, 1 + high) * advantage)


def test_dapo_is_the_mean_over_all_tokens_with_a_higher_upper_bound():
    tokens = rollouts(2)
    expected = torch.stack([loss for row in kept(tokens) for loss in clipped(row)]).mean()
    check(tokens, mean(tokens, Objective().losses(tokens, NO_DUAL)[0], "tokens"), expected)


def test_dr_grpo_divides_the_sum_over_a_rollout_by_a_constant():
    tokens = rollouts(3)
    expected = torch.stack([sum(clipped(row)) / 11 for row in kept(tokens)]).mean()
    check(tokens, mean(tokens, Objective().losses(tokens, NO_DUAL)[0], "constant", 11), expected)


def test_the_default_is_the_clipped_surrogate_bit_for_bit():
    tokens = rollouts(4)
    loss, figures = clipped_surrogate(tokens.logp, tokens.old_logp, tokens.advantages, tokens.mask)
    losses, mine = Objective().losses(tokens, ClipConfig())
    assert mean(tokens, losses).item() == loss.item()
    assert mine == figures


@pytest.mark.parametrize(("mean_over", "length"), [("rollouts", None), ("tokens", None), ("constant", 5)])
def test_shares_of_a_group_add_up_to_its_mean(mean_over, length):
    tokens = rollouts(5)
    losses = Objective().losses(tokens, NO_DUAL)[0].detach()
    config = AggregationConfig(mean_over, length)
    total = {"rollouts": 3, "tokens": int(tokens.mask.sum())}
    parts = [aggregate(losses[part], tokens.mask[part], config, **total) for part in (slice(0, 1), slice(1, 3))]
    whole = aggregate(losses, tokens.mask, config, **total)
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("wrong", [("token", None), ("constant", None), ("constant", 0), ("tokens", 3)])
def test_a_mean_that_is_not_whole_is_refused(wrong):
    with pytest.raises(ValueError, match=r"model\.aggregation"):
        AggregationConfig(*wrong)


def with_gap(seed):
    tokens = rollouts(seed)
    gap = 0.5 * torch.randn(tokens.logp.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(tokens, gap=gap.masked_fill(~tokens.mask, float("nan")))


def sign(value):
    return (value > 0) - (value < 0)


def reweighted(tokens, weight):
    """The clipped surrogate whose advantages are multiplied by ``weight(advantage, rollout, token)``."""
    advantages = tokens.advantages.clone()
    for k, n in tokens.mask.nonzero().tolist():
        advantages[k, n] *= weight(float(advantages[k, n]), k, n)
    return clipped_surrogate(tokens.logp, tokens.old_logp, advantages, tokens.mask)[0]


def test_rlsd_weighs_each_token_by_the_evidence_of_the_trace():
    tokens = with_gap(6)

    def weight(advantage, k, n):
        evidence = exp(sign(advantage) * float(tokens.gap[k, n]))
        return 0.3 + 0.7 * min(max(evidence, 0.8), 1.2)

    losses, figures = RLSD(0.7).losses(tokens, ClipConfig())
    check(tokens, mean(tokens, losses), reweighted(tokens, weight))
    assert figures["gap"].item() == pytest.approx(tokens.gap[tokens.mask].mean().item())
    assert set(figures) == {*FIGURES, *RLSD.figures}


def test_turnsight_weighs_each_turn_by_its_mean_gap():
    tokens = with_gap(7)

    def weight(advantage, k, n):
        of_turn = [
            float(tokens.gap[k, m]) for m in range(7) if tokens.mask[k, m] and tokens.turns[k, m] == tokens.turns[k, n]
        ]
        return 0.5 + 0.5 * (1 + 0.5 * tanh(sign(advantage) * sum(of_turn) / len(of_turn)))

    losses, figures = TurnSight().losses(tokens, ClipConfig())
    check(tokens, mean(tokens, losses), reweighted(tokens, weight))
    assert set(figures) == {*FIGURES, *TurnSight.figures}


@pytest.mark.parametrize("objective", [RLSD(), TurnSight()])
def test_without_a_trace_the_gap_changes_nothing(objective):
    tokens = rollouts(8)
    losses, figures = objective.losses(tokens, ClipConfig())
    assert torch.equal(losses, Objective().losses(tokens, ClipConfig())[0])
    assert (figures["gap"].item(), figures["gap_weight"].item()) == (0.0, 1.0)


def test_strengths_out_of_range_are_refused():
    for make in (lambda: RLSD(1.5), lambda: RLSD(clip=-1.0), lambda: TurnSight(mix=2.0)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            make()

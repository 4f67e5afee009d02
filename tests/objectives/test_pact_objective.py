"""How the terms of a prompt add up, on a small policy whose every term is real."""

import pytest
import torch

from pact_lightning.credit.advantages import dual_level_advantages
from pact_lightning.credit.rewards import outcome_reward
from pact_lightning.objectives.component_sft import component_sft_loss
from pact_lightning.objectives.kl import entropy_bonus, k3_kl
from pact_lightning.objectives.pact import Coefficients, pact_prompt_loss
from pact_lightning.objectives.surrogate import clipped_surrogate

K, T, N, V = 4, 6, 5, 7


class Prompt:
    """Terms of one prompt: rollouts and trace have their own logits, so their gradients can be told apart."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.rollout_logits = torch.randn(K, T, V, generator=generator, dtype=torch.float64).requires_grad_()
        self.trace_logits = torch.randn(N, V, generator=generator, dtype=torch.float64).requires_grad_()
        ids = torch.randint(V, (K, T, 1), generator=generator)
        trace_ids = torch.randint(V, (N, 1), generator=generator)
        self.mask = torch.rand(K, T, generator=generator) < 0.8
        noise = 0.3 * torch.randn(2, K, T, generator=generator, dtype=torch.float64)
        self.logp_all = self.rollout_logits.log_softmax(dim=-1)
        self.logp = self.logp_all.gather(-1, ids)[..., 0]
        self.old, self.ref = (self.logp + noise).detach()
        self.trace_logp = self.trace_logits.log_softmax(dim=-1).gather(-1, trace_ids)[..., 0]
        rewards = [outcome_reward(1, "yes" if k == 0 else "no", "yes") for k in range(K)]
        per_turn = dual_level_advantages(rewards, fusion="trajectory")
        self.advantages = torch.tensor(per_turn, dtype=torch.float64).expand(K, T)

    def terms(self):
        entropy = -(self.logp_all.exp() * self.logp_all).sum(dim=-1)
        return {
            "rl": clipped_surrogate(self.logp, self.old, self.advantages, self.mask)[0],
            "kl": k3_kl(self.logp, self.ref, self.mask)[0],
            "entropy": entropy_bonus(entropy, self.mask)[0],
            "sft": component_sft_loss(self.trace_logp, torch.ones(N))[0],
        }

    def gradients(self, loss):
        return torch.autograd.grad(loss, [self.rollout_logits, self.trace_logits], allow_unused=True, retain_graph=True)


def test_a_trace_prompt_adds_all_terms_with_their_coefficients():
    terms = Prompt().terms()
    loss, metrics = pact_prompt_loss(anchored=False, **terms, coefficients=Coefficients(sft=0.3, kl=0.2, entropy=0.1))
    expected = terms["rl"] + 0.2 * terms["kl"] + 0.1 * terms["entropy"] + 0.3 * terms["sft"]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    values = {name: value.item() for name, value in metrics.items()}
    assert values == pytest.approx(
        {name: term.item() for name, term in terms.items()}
        | {"loss": expected.item(), "anchored": 0.0, "rl_dropped": 0.0}
    )
    assert not any(value.requires_grad for value in metrics.values())


def test_defaults_are_the_papers():
    terms = Prompt().terms()
    expected = terms["rl"] + 0.001 * terms["kl"] + 0.001 * terms["entropy"] + 0.1 * terms["sft"]
    assert pact_prompt_loss(anchored=False, **terms)[0].item() == pytest.approx(expected.item(), abs=1e-14)


def test_an_anchored_prompt_gets_no_trace_loss():
    prompt = Prompt()
    terms = prompt.terms()
    loss, metrics = pact_prompt_loss(anchored=True, **terms)
    rollout, trace = prompt.gradients(loss)
    assert trace is None
    assert rollout.abs().sum() > 0
    assert "sft" not in metrics
    assert metrics["anchored"].item() == 1.0
    expected = terms["rl"] + 0.001 * terms["kl"] + 0.001 * terms["entropy"]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    without, _ = pact_prompt_loss(anchored=True, rl=terms["rl"], kl=terms["kl"], entropy=terms["entropy"])
    assert without.item() == loss.item()


def test_beta_zero_leaves_no_sft_gradient():
    prompt = Prompt()
    loss, metrics = pact_prompt_loss(anchored=False, **prompt.terms(), coefficients=Coefficients(sft=0.0))
    assert prompt.gradients(loss)[1] is None
    assert "sft" not in metrics


def test_a_zero_variance_group_keeps_its_sft_term_alone():
    prompt = Prompt()
    terms = prompt.terms() | {"rl": None}
    loss, metrics = pact_prompt_loss(anchored=False, **terms)
    rollout, trace = prompt.gradients(loss)
    assert loss.item() == pytest.approx(0.1 * terms["sft"].item(), abs=1e-15)
    assert rollout is None
    assert trace.abs().sum() > 0
    assert metrics["rl_dropped"].item() == 1.0
    assert metrics.keys() == {"sft", "loss", "anchored", "rl_dropped"}


def test_an_anchored_zero_variance_group_is_a_plain_zero():
    loss, metrics = pact_prompt_loss(anchored=True, **(Prompt().terms() | {"rl": None}))
    assert loss.item() == 0.0
    assert not loss.requires_grad
    assert metrics.keys() == {"loss", "anchored", "rl_dropped"}
    assert pact_prompt_loss(anchored=True, rl=None)[0].item() == 0.0


def test_a_term_that_is_left_out_does_no_harm():
    terms = Prompt().terms()
    nan = torch.tensor(float("nan"))
    clean, _ = pact_prompt_loss(anchored=True, rl=terms["rl"], coefficients=Coefficients(0.1, 0.0, 0.0))
    dirty, _ = pact_prompt_loss(
        anchored=True, rl=terms["rl"], kl=nan, entropy=nan, sft=nan, coefficients=Coefficients(0.1, 0.0, 0.0)
    )
    assert dirty.item() == clean.item() == terms["rl"].item()


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_everything_anchored_with_outcome_reward_is_grpo(beta):
    """``q = 1`` + outcome reward + trajectory level, against GRPO written out from rewards to loss."""
    prompt = Prompt(seed=3)
    terms = prompt.terms()
    loss, _ = pact_prompt_loss(anchored=True, **terms, coefficients=Coefficients(kl=beta, entropy=0.0))
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    advantage = ((rewards - rewards.mean()) / (rewards.std() + 1e-6))[:, None]
    ratio = (prompt.logp - prompt.old).exp()
    token = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    gap = prompt.ref - prompt.logp
    token = token + beta * (gap.exp() - gap - 1)
    grpo = ((token * prompt.mask).sum(dim=1) / prompt.mask.sum(dim=1)).mean()
    assert ratio.max() < 3.0  # the dual clip, which GRPO lacks, is out of reach
    assert loss.item() == pytest.approx(grpo.item(), abs=1e-12)
    torch.testing.assert_close(prompt.gradients(loss)[0], prompt.gradients(grpo)[0], rtol=0, atol=1e-12)


def test_a_missing_term_is_named():
    rl = torch.zeros(())
    with pytest.raises(ValueError, match=r"the kl term is missing although its coefficient is 0\.001"):
        pact_prompt_loss(anchored=True, rl=rl)
    with pytest.raises(ValueError, match=r"the sft term is missing although its coefficient is 0\.1"):
        pact_prompt_loss(anchored=False, rl=None)
    with pytest.raises(ValueError, match="the entropy coefficient must be finite and >= 0, not -1"):
        Coefficients(entropy=-1.0)

"""Rivals' optimiser steps by the module: what reaches an objective, and that packing changes nothing."""

import pytest
import torch
from hand_made import FULL, Batches, gradients, hand_made_group, prepared, quiet_trainer
from plain_pact import RENDERER, Plain

from pact_lightning.callbacks.mixture import MixtureCallback
from pact_lightning.objectives.aggregation import AggregationConfig
from pact_lightning.objectives.objective import Objective
from pact_lightning.objectives.opsd import OPSD
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.objectives.rlsd import RLSD
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.trajectory import Component

SHIFT = 0.02
NO_SFT = Coefficients(sft=0.0)


def group_of(index=1, **changes):
    return hand_made_group(RENDERER, index, **changes)


class Seen(Objective):
    """The surrogate; it keeps what it was given."""

    needs_gap = True

    def __init__(self):
        self.given = []

    def losses(self, tokens, clip):
        self.given.append(tokens)
        return super().losses(tokens, clip)


@pytest.mark.parametrize("ratio_context", ["prompt", "trace"])
def test_the_privilege_gap_is_that_of_plain_forwards_under_both_contexts(ratio_context):
    objective = Seen()
    module = prepared(
        FULL, SHIFT, anchor_probability=0.0, coefficients=NO_SFT, ratio_context=ratio_context, objective=objective
    )
    group = group_of()
    gradients(module, group, group_of(3, anchored="drawn"))
    plain = Plain(module)
    trace, anchored = sorted(objective.given, key=lambda tokens: tokens.gap is None)
    assert anchored.gap is None
    for sample, trajectory in enumerate(group.trajectories):
        with torch.no_grad():
            gap = plain.logps(plain.privileged(group), trajectory) - plain.logps(plain.prompt(group), trajectory)
        found = trace.gap[sample][trace.mask[sample]]
        assert float(gap.abs().max()) > 0.1
        torch.testing.assert_close(found, gap, rtol=0, atol=2e-4)
        assert not found.requires_grad


@pytest.mark.parametrize("aggregation", [AggregationConfig("tokens"), AggregationConfig("constant", 20)])
def test_packing_changes_neither_loss_nor_gradient_of_a_rival(aggregation):
    def step(limit, packing):
        settings = {"anchor_probability": 0.0, "coefficients": Coefficients(sft=0.0, kl=0.05, entropy=0.02)}
        settings |= {"ratio_context": "prompt", "objective": RLSD(0.9), "aggregation": aggregation}
        module = prepared(FULL, SHIFT, max_tokens_per_forward=limit, packing=packing, **settings)
        return gradients(module, group_of(1), group_of(3)), module.logged[0]

    whole, logged = step(100_000, "shared_prefix")
    parts, in_parts = step(1, "rows")
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert largest > 1e-2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5 * max(1.0, largest))
    assert in_parts == pytest.approx(logged, abs=2e-4, rel=1e-4)
    assert logged["train/gap"] != 0.0
    assert 0.8 < logged["train/gap_weight"] < 1.2


def likelihood(plain, group, weight):
    """Minus the mean of w log p over all that the expert wrote, the answer included, under the prompt."""
    trace = render_trace(RENDERER, group.task.trace, with_final=True)
    full = plain.distribution(plain.prompt(group), trace.ids, temperature=1.0)
    logp = full[torch.arange(len(trace.ids)), torch.from_numpy(trace.ids)]
    written = logp[torch.from_numpy((trace.components != Component.OBSERVATION) & (trace.components != 0))]
    return -(weight(written.detach().exp()) * written).mean()


@pytest.mark.parametrize(
    ("token_weight", "weight"),
    [
        ("none", torch.ones_like),
        ("chord_phi", lambda p: p * (1 - p)),
        ("trust_region", lambda p: torch.where(p < 0.3, p / 0.3, torch.ones_like(p))),
    ],
)
def test_a_mixture_weighs_the_surrogate_under_the_prompt_against_the_experts_likelihood(token_weight, weight):
    module = prepared(
        FULL,
        SHIFT,
        anchor_probability=0.0,
        ratio_context="prompt",
        coefficients=Coefficients(sft=0.5, kl=0.0, entropy=0.0),
        sft=SFTConfig("policy", with_answer=True, token_weight=token_weight, alpha=0.3),
    )
    module.mixture = 0.3
    group = group_of()
    assert group.task.trace.final is not None
    plain = Plain(module)
    loss = 0.7 * plain.rollouts(group, plain.prompt(group)) + 0.3 * likelihood(plain, group, weight)
    expected = plain.gradient(loss)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    torch.testing.assert_close(gradients(module, group), expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))


def test_the_callback_sets_the_mixture_of_every_step_and_a_resumed_run_has_the_same():
    """The step's number alone decides: the second batch of a run has the mu of step 1."""
    module = prepared(FULL, SHIFT, anchor_probability=0.0, ratio_context="prompt")
    seen = []
    module.accumulate_gradients = lambda *given: (
        seen.append(module.mixture) or type(module).accumulate_gradients(module, *given)
    )
    callback = MixtureCallback(start=0.8, end=0.2, decay_steps=2, warmup_steps=1)
    quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, Batches([[group_of(1)]] * 3))
    assert seen == pytest.approx([0.0, 0.8, 0.5])


def test_a_mixture_decays_over_all_steps_of_the_run_where_no_other_length_is_given():
    module = prepared(FULL, SHIFT, anchor_probability=0.0, ratio_context="prompt")
    seen = []
    module.accumulate_gradients = lambda *given: (
        seen.append(module.mixture) or type(module).accumulate_gradients(module, *given)
    )
    callback = MixtureCallback(start=0.8, end=0.2, decay_steps=None)
    quiet_trainer(max_epochs=-1, max_steps=2, callbacks=[callback]).fit(module, Batches([[group_of(1)]] * 3))
    assert seen == pytest.approx([0.8, 0.5])
    with pytest.raises(ValueError, match="MixtureCallback needs decay_steps"):
        quiet_trainer(max_epochs=-1, callbacks=[callback]).fit(module, Batches([[group_of(1)]]))


@pytest.mark.parametrize("with_rl", [True, False])
def test_opsd_adds_the_whole_vocabularys_divergence_from_the_policy_under_the_trace(with_rl):
    settings = {"anchor_probability": 0.0, "coefficients": Coefficients(sft=0.0, kl=0.0, entropy=0.0)}
    objective = OPSD(0.7, with_rl)
    module = prepared(FULL, SHIFT, ratio_context="prompt", objective=objective, head_chunk=7, **settings)
    group = group_of(temperature=0.7)
    plain = Plain(module, 0.7)
    losses = []
    for trajectory in group.trajectories:
        ids, kept = trajectory.ids(), plain.of_policy(trajectory)
        student = plain.distribution(plain.prompt(group), ids)[kept]
        teacher = plain.distribution(plain.privileged(group), ids)[kept].detach()
        losses.append((student.exp() * (student - teacher)).sum(-1).mean())
    divergence = torch.stack(losses).mean()
    loss = 0.7 * divergence + (plain.rollouts(group, plain.prompt(group)) if with_rl else 0.0)
    expected = plain.gradient(loss)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-2
    torch.testing.assert_close(gradients(module, group), expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))
    assert module.logged[0]["train/loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_opsd_without_a_trace_is_the_surrogate_and_needs_the_prompts_context():
    anchored = group_of(anchored="drawn")
    module = prepared(FULL, SHIFT, ratio_context="prompt", objective=OPSD(), coefficients=NO_SFT)
    plain = Plain(module)
    expected = plain.gradient(plain.rollouts(anchored, plain.prompt(anchored)))
    found = gradients(module, anchored)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))
    with pytest.raises(ValueError, match=r"model\.ratio_context is 'trace'; set it to 'prompt'"):
        PACTModule(policy=FULL, objective=OPSD())

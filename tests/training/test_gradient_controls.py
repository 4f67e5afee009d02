"""Controls for the gradient of ``L^h`` whose ratio knows no trace: token weights by the gap, and a matched norm."""

import pytest
import torch
from hand_made import FULL, RecordingModule, gradients, hand_made_group, prepared, quiet_trainer
from plain_pact import RENDERER, Plain

from pact_lightning.objectives.gap_weighted import GapWeighted
from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.objectives.surrogate import ClipConfig
from pact_lightning.training.matched_norm import MatchedNorm


def tokens_of(gap):
    generator = torch.Generator().manual_seed(3)
    logp = torch.randn(2, 4, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    zeros = torch.zeros(2, 4)
    return RolloutTokens(logp, logp + 0.1, torch.tensor([[1.0] * 4, [-2.0] * 4]), mask, zeros.long(), gap)


def test_gap_weights_worked_by_hand():
    gap = torch.tensor([[0.0, 1.0, -1.0, -9.0], [2.0, 2.0, 50.0, float("nan")]])
    tokens = tokens_of(gap)
    losses, figures = GapWeighted(1.0, 5.0).losses(tokens, ClipConfig())
    plain, _ = Objective().losses(tokens, ClipConfig())
    raw = torch.tensor([1.0, 1 / 2.718281828, 2.718281828, 5.0])
    torch.testing.assert_close(losses[0] / plain[0], raw / raw.mean())
    torch.testing.assert_close(losses[1], plain[1])  # equal weights are none
    assert figures["gap_weight"] == pytest.approx(1.0)
    assert figures["gap"] == pytest.approx((0 + 1 - 1 - 9 + 2 + 2) / 6)


def test_without_a_trace_or_strength_it_is_the_surrogate():
    plain, _ = Objective().losses(tokens_of(None), ClipConfig())
    for objective, gap in ((GapWeighted(), None), (GapWeighted(0.0), torch.randn(2, 4))):
        torch.testing.assert_close(objective.losses(tokens_of(gap), ClipConfig())[0], plain)


@pytest.mark.parametrize(("strength", "most"), [(-1.0, 5.0), (float("inf"), 5.0), (1.0, 0.5)])
def test_values_that_make_no_sense(strength, most):
    with pytest.raises(ValueError, match="GapWeighted needs"):
        GapWeighted(strength, most)


class Recorded(MatchedNorm, RecordingModule):
    """Keeps the gradient of every step."""


def matched(**settings):
    module = prepared(FULL, 0.02, **settings)
    module.__class__ = Recorded
    return module


def test_the_surrogates_gradient_gets_the_norm_that_it_has_under_the_trace():
    weights = Coefficients(sft=0.2, kl=0.0, entropy=0.0)
    module = matched(anchor_probability=0.0, coefficients=weights, ratio_context="prompt")
    shown, anchored = hand_made_group(RENDERER, 1), hand_made_group(RENDERER, 3, anchored="drawn")
    plain = Plain(module)

    def gradient(loss):
        return {name: found.clone() for name, found in plain.gradient(loss).items()}

    def norm(found):
        return torch.stack([part.norm() for part in found.values()]).norm()

    under_trace = gradient(plain.rollouts(shown, plain.privileged(shown)))
    under_prompt = gradient(plain.rollouts(shown, plain.prompt(shown)))
    rest = gradient(0.2 * plain.sft(shown) + plain.rollouts(anchored, plain.prompt(anchored)))
    scale = norm(under_trace) / norm(under_prompt)
    assert abs(float(scale) - 1) > 0.05
    expected = {name: (scale * under_prompt.get(name, 0.0) + part) / 2 for name, part in rest.items()}
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    found = gradients(module, shown, anchored)
    largest = max(float(part.abs().max()) for part in expected.values())
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-5 * max(1.0, largest))
    assert logged["train/matched_scale"] == pytest.approx(float(scale), rel=1e-3)


def test_a_step_without_trace_prompts_is_as_it_was_and_another_context_is_refused():
    anchored = {"index": 3, "anchored": "drawn"}
    settings = {"anchor_probability": 0.0, "ratio_context": "prompt"}
    plain = gradients(prepared(FULL, 0.02, **settings), hand_made_group(RENDERER, **anchored))
    torch.testing.assert_close(gradients(matched(**settings), hand_made_group(RENDERER, **anchored)), plain)
    with pytest.raises(ValueError, match=r"model\.ratio_context is 'trace'; set it to 'prompt'"):
        quiet_trainer(max_epochs=1).fit(MatchedNorm(policy=FULL))

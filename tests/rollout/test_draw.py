"""Drawing tokens block by block: the same tokens as a running sum over the whole vocabulary."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from pact_lightning.rollout.samplers.transformers_sampler import BLOCK, draw_tokens


def plain(probabilities, uniforms):
    """The definition, one running sum in float64."""
    ends = probabilities.double().numpy().cumsum(-1)
    points = uniforms.numpy() * ends[:, -1]
    return [int(np.searchsorted(row, point, side="right")) for row, point in zip(ends, points, strict=True)]


@pytest.mark.parametrize("vocabulary", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 15_194])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_tokens_are_those_of_one_running_sum(vocabulary, scale):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = scale * torch.randn(200, vocabulary, generator=generator)
    uniforms = torch.rand(200, dtype=torch.float64, generator=generator)
    uniforms[0] = 0.0
    probabilities = logits.softmax(-1)
    assert draw_tokens(probabilities, uniforms).tolist() == plain(probabilities, uniforms)


def test_a_token_without_probability_is_never_drawn():
    probabilities = torch.zeros(1000, 3 * BLOCK + 5)
    allowed = [0, BLOCK - 1, BLOCK, 2 * BLOCK + 3, 3 * BLOCK + 4]
    probabilities[:, allowed] = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    uniforms = torch.arange(1000, dtype=torch.float64) / 1000
    drawn = draw_tokens(probabilities, uniforms)
    counts = np.bincount(drawn.numpy(), minlength=probabilities.shape[1])
    assert counts[allowed] == pytest.approx([100, 200, 300, 300, 100], abs=1)
    assert counts.sum() == counts[allowed].sum()


@pytest.mark.parametrize("uniform", [0.0, 2**-60, 1 - 2**-53])
def test_the_ends_of_the_interval_fall_on_tokens_with_probability(uniform):
    generator = torch.Generator().manual_seed(0)
    logits = 40 * torch.randn(500, 2 * BLOCK + 9, generator=generator)
    logits[:, [0, 1, BLOCK - 1, BLOCK, -1]] = -1000.0
    probabilities = logits.softmax(-1)
    drawn = draw_tokens(probabilities, torch.full((500,), uniform, dtype=torch.float64))
    assert (probabilities.gather(1, drawn[:, None]) > 0).all()


def test_tokens_come_as_often_as_their_share():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(300, generator=generator) + 0.2
    uniforms = torch.rand(60_000, dtype=torch.float64, generator=generator)
    drawn = draw_tokens(weights.expand(60_000, -1), uniforms)
    counts = np.bincount(drawn.numpy(), minlength=300)
    expected = (weights.double() / weights.double().sum()).numpy() * 60_000
    assert chisquare(counts, expected).pvalue > 1e-3

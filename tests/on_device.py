"""The devices of a test whose program is the same on a CPU and on a card; only a card decides those of the card."""

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def far(found, expected):
    """The distance of tensors as a share of the expected ones' length, both on the CPU in float64."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))

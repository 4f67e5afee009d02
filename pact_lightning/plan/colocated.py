"""Memory of a vLLM engine in the same process: the base once more, and its share of a card."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pact_lightning.policy.flops import linear_layers

VLLM_NF4_BYTES = 0.5 + 4 / 64
"""Bytes of a 4-bit weight in vLLM: its plugin keeps the scale of 64 weights in float32, no longer quantised itself."""


@dataclass(frozen=True, slots=True)
class ColocatedEngine:
    """Settings of a vLLM engine beside the policy.

    Attributes:
        share: ``gpu_memory_utilization``.
        in_nf4: Whether its base is in 4 bits.
        sleeps: Whether it gives its memory up between the rollouts.
    """

    share: float
    in_nf4: bool
    sleeps: bool


@dataclass(frozen=True, slots=True)
class EngineBytes:
    """Bytes of a vLLM engine.

    Attributes:
        weights: Its copy of the base, and an adapter.
        row: Keys and values of one rollout at its longest.
        rows: Rollouts at a time.
        share: Its share of the card, whatever it needs; ``None`` where no card is named.
        sleeps: Whether it gives all of it up between the rollouts.
    """

    weights: int
    row: int
    rows: int
    share: int | None
    sleeps: bool

    @property
    def needed(self) -> int:
        """Bytes without which not even one rollout runs."""
        return self.weights + self.row

    @property
    def awake(self) -> int:
        """Bytes during the rollouts: the share of a known card, else what all rows need at once."""
        return self.weights + self.rows * self.row if self.share is None else self.share

    @property
    def in_update(self) -> int:
        """Bytes during an update."""
        return 0 if self.sleeps else self.awake

    @property
    def rows_at_once(self) -> int:
        """Rollouts whose keys and values fit its share at once; vLLM lets the others wait."""
        return min(self.rows, max(0, self.awake - self.weights) // self.row)


def engine_bytes(engine: ColocatedEngine, skeleton: nn.Module, *, row: int, rows: int, card: int | None) -> EngineBytes:
    """Count what a vLLM engine takes beside the policy.

    Args:
        engine: Its settings.
        skeleton: The policy with its adapter on the meta device.
        row: Bytes of a rollout's keys and values.
        rows: Rollouts at a time.
        card: Bytes of the card, if one is named.
    """
    source: Any = skeleton
    size: int = source.get_input_embeddings().weight.element_size()
    # An expert's byte holds two weights.
    weights = size * sum(weight.numel() * (2 if weight.dtype is torch.uint8 else 1) for weight in skeleton.parameters())
    if engine.in_nf4:
        weights -= round(sum(layer.weight.numel() for layer in linear_layers(skeleton)) * (size - VLLM_NF4_BYTES))
    return EngineBytes(weights, row, rows, None if card is None else int(engine.share * card), engine.sleeps)

"""Bytes of what is there all the time: weights, adapter, reference, optimiser."""

from dataclasses import dataclass

from torch import nn

from pact_lightning.policy.flops import FlopCount
from pact_lightning.policy.loading import Adapter

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: four bits, a byte of scale per 64 weights, a float32 per 256 such scales (double quantisation)."""

_BLOCK, _SMALL = 256, 4096
"""bitsandbytes' 8-bit moments have a float32 of scale per 256, and tensors of fewer than 4,096 weights keep theirs."""


@dataclass(frozen=True, slots=True)
class StandingBytes:
    """What stays in memory through a phase.

    Attributes:
        weights: The frozen weights, or those of a policy trained in full.
        adapter: The adapter's weights.
        reference: The frozen second copy; 0 with an adapter, or without a KL term.
        gradients: One per trained weight, from the first backward pass of a step to its end.
        optimizer: AdamW's moments, from the first step on.
        dequantised: The largest 4-bit layer in the type that it computes in, while it is used.
    """

    weights: int
    adapter: int
    reference: int
    gradients: int
    optimizer: int
    dequantised: int

    @property
    def always(self) -> int:
        """Bytes that are there in rollouts and in updates."""
        return self.weights + self.adapter + self.reference + self.optimizer


def standing_bytes(
    skeleton: nn.Module, adapter: Adapter, *, needs_reference: bool, optimizer_bits: int = 32
) -> StandingBytes:
    """Adds up a policy's tensors.

    Args:
        skeleton: The policy on the meta device.
        adapter: What is trained.
        needs_reference: Whether there is a KL term.
        optimizer_bits: 32, or 8 for moments of 8 bits.
    """
    frozen = sum(weight.nbytes for weight in skeleton.parameters() if not weight.requires_grad)
    frozen += sum(buffer.nbytes for buffer in skeleton.buffers())
    trained = sum(weight.nbytes for weight in skeleton.parameters() if weight.requires_grad)
    full = adapter == "full"
    dequantised = 0
    if adapter == "qlora":
        linear = [module for name, module in skeleton.named_modules() if _is_base_layer(name, module)]
        size = linear[0].weight.element_size()
        frozen -= round(FlopCount.of(skeleton).base * (size - NF4_BYTES))
        dequantised = max(module.weight.nbytes for module in linear)
    weights = frozen + trained if full else frozen
    return StandingBytes(
        weights=weights,
        adapter=0 if full else trained,
        reference=weights if full and needs_reference else 0,
        gradients=trained,
        optimizer=sum(_moments(weight, optimizer_bits) for weight in skeleton.parameters() if weight.requires_grad),
        dequantised=dequantised,
    )


def _moments(weight: nn.Parameter, bits: int) -> int:
    """Bytes of AdamW's two moments of a weight."""
    if bits == 32:
        return 2 * weight.nbytes
    if weight.numel() < _SMALL:
        return 2 * 4 * weight.numel()
    return 2 * (weight.numel() + 4 * -(-weight.numel() // _BLOCK))


def _is_base_layer(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.endswith("base_layer")

"""Experts that transformers keeps as one tensor per layer: which weights they are, and what an adapter leaves alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")

_SPLIT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of linear layers that PEFT takes for experts and routers of old checkpoints, in later versions only."""


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """Weight of all experts of a layer.

    Attributes:
        module: The module that holds it.
        name: Its name there.
        path: Its name in a layer, such as ``mlp.experts.down_proj``.
        shape: Its shape ``[E, ...]``, also where it is in 4 bits.
    """

    module: nn.Module
    name: str
    path: str
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of its weights."""
        return prod(self.shape)


def expert_tensors(model: nn.Module) -> list[ExpertTensor]:
    """List the experts of a model's text decoder, those in 4 bits included.

    Args:
        model: A transformers model, with or without an adapter; it may be on the meta device.
    """
    source: Any = model
    base = source.get_base_model() if hasattr(model, "get_base_model") else source
    return [
        ExpertTensor(module, name, re.sub(r"^.*?\.\d+\.", "", f"{path}.{name}"), shape)
        for path, module in base.get_decoder().named_modules()
        if not isinstance(module, _ConvNd)
        for name, shape in _shapes(module)
        if len(shape) == 3 and shape[0] > 1
    ]


def _shapes(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, weight in module.named_parameters(recurse=False):
        yield name, tuple(weight.shape)
    parametrizations: Any = getattr(module, "parametrizations", {})
    for name, parts in parametrizations.items():
        state = getattr(parts[0], "quant_state", None)
        if state is not None:
            yield name, tuple(state.shape)


def experts_per_token(config: "PretrainedConfig") -> tuple[int, int] | None:
    """Return how many experts a token meets in a layer, and how many there are; ``None`` for a dense model.

    A config that names no number of chosen experts counts as one in which a token meets all of them.

    Args:
        config: Configuration of the model.
    """
    text = config.get_text_config()
    there = max((getattr(text, name, None) or 0 for name in _COUNTS), default=0)
    if there < 1:
        return None
    chosen = next((found for name in _CHOSEN if (found := getattr(text, name, None))), there)
    return min(int(chosen), there), there


def experts_sentence(model: "PreTrainedModel") -> str | None:
    """Say which weights of a model are experts in one tensor, and how many they are.

    Returns:
        Such as ``1,024 of 4,096 parameters are experts kept as one tensor (mlp.experts.down_proj)``; ``None`` without.
    """
    found = expert_tensors(model)
    if not found:
        return None
    count, names = sum(tensor.weights for tensor in found), dict.fromkeys(tensor.path for tensor in found)
    return f"{count:,} of {model.num_parameters():,} parameters are experts kept as one tensor ({', '.join(names)})"


def layers_beside_experts(model: "PreTrainedModel") -> list[str]:
    """Return the names of the linear layers that ``all-linear`` adapts in a mixture of experts: those of attention.

    PEFT reads a name such as ``down_proj`` as that of experts, depending on its version and the model, and then gives
    each of them a LoRA and none to the linear layers of that name [D].
    """
    source: Any = model
    layers = {
        name.rpartition(".")[2]
        for name, module in source.get_decoder().named_modules()
        if isinstance(module, nn.Linear)
    }
    return sorted(layers - _SPLIT_NAMES)


def check_no_expert_is_adapted(adapted: nn.Module) -> None:
    """Check that PEFT has put no LoRA on whole tensors.

    Raises:
        ValueError: It has.
    """
    source: Any = adapted
    names = sorted({name for config in source.peft_config.values() for name in config.target_parameters or ()})
    if names:
        raise ValueError(
            f"policy.target_modules names experts, which this model keeps as one tensor ({', '.join(names)}); PEFT "
            "would make a LoRA for each expert, which neither 4 bits nor vLLM know. Name layers of the attention, or "
            "set all-linear, which takes these"
        )


def quantise_experts(model: "PreTrainedModel") -> None:
    """Put the experts into NF4, as bitsandbytes does with linear layers, each on the default device.

    A layer's experts are taken out of their 4 bits while it runs.

    Args:
        model: The model, which is changed.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    device = torch.get_default_device()
    for tensor in expert_tensors(model):
        weight: nn.Parameter = getattr(tensor.module, tensor.name)
        if weight.is_meta:
            _plan_quantised(tensor, weight)
            continue
        weight.data = weight.data.to(device)
        replace_parameter_4bit(tensor.module, tensor.name, compress_statistics=True, quant_type="nf4")
        parametrizations: Any = tensor.module.parametrizations
        parametrizations[tensor.name][0].register_forward_pre_hook(_follow)


class _WithoutValues(nn.Module):
    """Stand-in for bitsandbytes' parametrization on the meta device, where it would spoil its tables for good."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.quant_state = SimpleNamespace(shape=weight.shape, dtype=weight.dtype)

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Return a weight of the right shape and type."""
        return packed.new_empty(self.quant_state.shape, dtype=self.quant_state.dtype)


def _plan_quantised(tensor: ExpertTensor, weight: nn.Parameter) -> None:
    packed = torch.empty(tensor.weights // 2, 1, dtype=torch.uint8, device="meta")
    setattr(tensor.module, tensor.name, nn.Parameter(packed, requires_grad=False))
    register_parametrization(tensor.module, tensor.name, _WithoutValues(weight), unsafe=True)


def dequantise_experts(model: "PreTrainedModel") -> None:
    """Take all experts out of their 4 bits for good."""
    for tensor in expert_tensors(model):
        weight: torch.Tensor = getattr(tensor.module, tensor.name)
        remove_parametrizations(tensor.module, tensor.name, leave_parametrized=False)
        setattr(tensor.module, tensor.name, nn.Parameter(weight, requires_grad=False))


def _follow(parametrization: nn.Module, given: tuple[torch.Tensor]) -> None:
    """Move the scales to the device of the 4-bit weight: they are no tensors of a module, which ``to`` would move."""
    state: Any = parametrization.quant_state
    if state.absmax.device != given[0].device:
        state.to(given[0].device)

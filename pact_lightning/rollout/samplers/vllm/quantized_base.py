"""Base of a QLoRA in vLLM: quantised as the trainer quantises it, or refused in a sentence.

vLLM itself reads no bitsandbytes weights since 0.28; the plugin ``vllm-bnb-plugin`` does. While it loads a base in 16
bits it quantises the linear layers below the head to NF4 with double quantisation, in blocks of 64, and multiplies in
bfloat16. The trainer does the same (:func:`~pact_lightning.policy.loading.load_policy`), so both have the same weights.
"""

import importlib
from importlib.metadata import entry_points

import torch
from packaging.version import Version

from pact_lightning.policy.experts import experts_per_token
from pact_lightning.policy.loading import PolicyConfig, checked_config, compute_dtype

OLDEST_VLLM = Version("0.28")
"""First vLLM that leaves bitsandbytes to the plugin, which is written for it."""

NF4_ARGUMENTS = {"quantization": "bitsandbytes"}
"""Arguments of ``vllm.LLM`` for it; the plugin knows no other 4-bit type than the trainer's, and no setting of it."""

_OTHERWISE = "or set sampler.quantize_base to false, and the base is sampled in 16 bits (docs/vllm.md)"


def check_plugin() -> None:
    """Check that the vLLM here can load a base in 4 bits.

    Raises:
        ImportError: vLLM is too old, or the plugin is missing.
    """
    version: str = importlib.import_module("vllm").__version__
    if Version(version) < OLDEST_VLLM:
        raise ImportError(
            f"a 4-bit base in vLLM needs vLLM {OLDEST_VLLM} or later, and this is {version}; upgrade it by "
            f"pip install -U 'pact-lightning[vllm]', {_OTHERWISE}"
        )
    if not any(point.value.startswith("vllm_bnb_plugin") for point in entry_points(group="vllm.general_plugins")):
        raise ImportError(
            f"a 4-bit base in vLLM needs the package vllm-bnb-plugin: pip install 'pact-lightning[vllm]', {_OTHERWISE}"
        )


def check_nf4(config: PolicyConfig) -> None:
    """Check that vLLM can have the very 4-bit base that a QLoRA is trained on.

    Args:
        config: Configuration of the policy.

    Raises:
        ValueError: The plugin would compute otherwise than the trainer, or may quantise otherwise.
    """
    dtype = compute_dtype(config)
    if dtype is not torch.bfloat16:
        raise ValueError(
            f"vLLM computes on 4-bit weights in bfloat16, and model.policy.dtype is {config.dtype!r} "
            f"({str(dtype).removeprefix('torch.')}); set it to 'bfloat16', {_OTHERWISE}"
        )
    base = checked_config(config)
    if getattr(base, "quantization_config", None) is not None:
        raise ValueError(
            f"the weights of policy.model {config.model!r} come in 4 bits, and whether vLLM's plugin reads them as the "
            f"trainer does has not been tried; give the model with weights in 16 bits, {_OTHERWISE}"
        )
    if experts_per_token(base) is not None:
        raise ValueError(
            "the policy is a mixture of experts, and whether vLLM's plugin puts experts into the same 4 bits as the "
            f"trainer has not been compared; set adapter to 'lora', {_OTHERWISE}"
        )

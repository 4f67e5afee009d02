"""Layers that an adapter and 4 bits reach: the linear ones of the text model; and what stands beside them."""

import re
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def check_generates_text(config: "PretrainedConfig", model: str) -> None:
    """Check that transformers loads a model as a causal language model.

    Raises:
        ValueError: It does not: the model reads pictures or sound, or does not generate.
    """
    from transformers import AutoModelForCausalLM

    known: Any = AutoModelForCausalLM
    if type(config) not in known._model_mapping.keys():  # noqa: SIM118  # it has no iteration
        raise ValueError(
            f"policy.model {model!r} is of the type {config.model_type!r}, which transformers does not load as a "
            "causal language model; give the text model of this family"
        )


def outside_text(model: "PreTrainedModel") -> str | None:
    """Return a pattern of the layers beside a model's text decoder and head: towers of images and sound.

    Returns:
        A regular expression for ``LoraConfig.exclude_modules``; ``None`` where no linear layer stands beside them.
    """
    source: Any = model
    text = (source.get_decoder(), source.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is part for part in text)]
    inside = re.compile("|".join(rf"{re.escape(name)}(\..*)?" for name in names))
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if "" in names or all(map(inside.fullmatch, layers)):  # the model may be its own decoder
        return None
    return rf"(?!({inside.pattern})$).*"


def experts_in_one_tensor(model: "PreTrainedModel") -> str | None:
    """Say which weights of the text model are experts in one tensor, and how many parameters they have.

    Returns:
        Such as ``1,024 of 4,096 parameters are experts kept as one tensor (mlp.experts.down_proj)``; ``None`` without.
    """
    source: Any = model
    sizes: dict[str, int] = {}
    for path, module in source.get_decoder().named_modules():
        if isinstance(module, _ConvNd):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() == 3 and weight.shape[0] > 1:
                short = re.sub(r"^.*\.\d+\.", "", f"{path}.{name}")
                sizes[short] = sizes.get(short, 0) + weight.numel()
    if not sizes:
        return None
    return f"{sum(sizes.values()):,} of {model.num_parameters():,} parameters are experts kept as one tensor " + (
        f"({', '.join(sizes)})"
    )

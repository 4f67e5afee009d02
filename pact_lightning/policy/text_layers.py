"""Text part of a model: whether it generates text, and the layers that stand beside it."""

import re
from typing import TYPE_CHECKING, Any

from torch import nn

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

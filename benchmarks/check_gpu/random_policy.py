"""Policy of random weights in 4 bits, made where it runs.

Weights of the true shape are right for time and memory, and wrong for anything else. Nothing of the size of a model is
written to disk or made in the host's memory.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.update_case import nf4_settings
from pact_lightning.policy.attention.plan import ATTENTION_NAME

QWEN3_4B: dict[str, int] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
}
"""The published shape."""

QLORA: dict[str, Any] = {"adapter": "qlora", "lora_r": 16, "lora_alpha": 32, "gradient_checkpointing": True}
"""Fields of the policy, as in the recipes for a Qwen3-4B."""


def random_base(folder: str, device: torch.device, *, attention: str = ATTENTION_NAME) -> Any:
    """Make the base of a QLoRA in bfloat16, by transformers' own way of loading.

    Args:
        folder: Folder with the model's configuration.
        device: Where it is made.
        attention: Attention function.
    """
    config: Any = Qwen3Config
    config = config.from_pretrained(folder)
    factory: Any = Qwen3ForCausalLM  # untyped
    with torch.device("meta"):
        shape = factory._from_config(config, dtype=torch.bfloat16)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    generator = torch.Generator(device).manual_seed(0)

    def drawn(weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return torch.ones(weight.shape, device=device, dtype=torch.bfloat16)
        values = torch.empty(weight.shape, device=device, dtype=torch.bfloat16)
        return values.normal_(0.0, 0.02, generator=generator)

    state = {name: drawn(weight) for name, weight in shape.state_dict().items() if name not in tied}
    return factory.from_pretrained(
        None,
        config=config,
        state_dict=state,
        quantization_config=nf4_settings(),
        device_map={"": device},
        dtype=torch.bfloat16,
        attn_implementation=attention,
    )

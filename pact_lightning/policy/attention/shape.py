"""Sizes of a decoder's attention, as its config says them."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes that the layers of a decoder share.

    Attributes:
        layers: Attention layers.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Width of a head.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: nn.Module) -> "AttentionShape":
        """Reads a transformers model or its decoder, with or without a PEFT adapter; it may be on the meta device."""
        source: Any = model
        config = source.config.get_text_config()
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )

"""Floating-point operations of a model, and the peak of a device.

Counted are the products with linear layers and head, two operations per weight, and attention's two products per pair
of a query and a key that it sees. Norms, activations, softmax and the embedding look-up are left out, and so is what
checkpointing computes again: the count is of the model, not of how it is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pact_lightning.policy.attention.plan import AttentionShape
from pact_lightning.policy.prefix_tree import BlockLayout, spans


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens and pairs that go through a model.

    Attributes:
        tokens: Tokens that go through the layers.
        head_tokens: Tokens that go through the head.
        pairs: Pairs of a query and a key that it attends to, per head and layer.
    """

    tokens: int = 0
    head_tokens: int = 0
    pairs: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.head_tokens + other.head_tokens, self.pairs + other.pairs)


def attended_pairs(layouts: Sequence[BlockLayout]) -> int:
    """Count pairs of query and key in trees: each part causally, over itself and all that it goes on from."""
    return sum(causal_pairs(span.length, span.before) for span in spans(layouts))


def causal_pairs(tokens: int, earlier: int = 0) -> int:
    """Count pairs where every token attends to itself and to all before it, ``earlier`` ones in front included."""
    return tokens * earlier + tokens * (tokens + 1) // 2


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Weights of a dense decoder that each token meets.

    Attributes:
        base: Weights of the linear layers below the head, without adapters.
        adapter: Weights of the adapters.
        head: Weights of the head.
        attention_width: ``layers * heads * head_dim``.
        base_trained: Whether base and head get gradients of their own.
    """

    base: int
    adapter: int
    head: int
    attention_width: int
    base_trained: bool

    @classmethod
    def of(cls, model: nn.Module) -> "FlopCount":
        """Read a transformers model, with or without a PEFT adapter; it may be on the meta device.

        Quantised layers count by their shape, not by how their weights are stored.
        """
        source: Any = model
        head = source.get_output_embeddings()
        base = adapter = 0
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module is not head:
                weights = module.in_features * module.out_features
                if ".lora_" in name:
                    adapter += weights
                else:
                    base += weights
        shape = AttentionShape.of(model)
        return cls(
            base=base,
            adapter=adapter,
            head=head.in_features * head.out_features,
            attention_width=shape.layers * shape.heads * shape.head_dim,
            base_trained=adapter == 0,
        )

    def forward(self, work: Work, *, with_adapter: bool = True) -> int:
        """Return the operations of a forward pass: ``2 N`` per token, and 4 per pair and unit of attention width."""
        weights = self.base + (self.adapter if with_adapter else 0)
        return 2 * weights * work.tokens + 2 * self.head * work.head_tokens + 4 * self.attention_width * work.pairs

    def backward(self, work: Work) -> int:
        """Return the operations of a backward pass.

        ``2 N`` per token for the gradient of the activations, ``2 N`` more for that of the trained weights; attention
        has four products where the forward pass has two.
        """
        activations = self.forward(work)
        trained = self.adapter * work.tokens
        if self.base_trained:
            trained += self.base * work.tokens + self.head * work.head_tokens
        return activations + 2 * trained + 4 * self.attention_width * work.pairs


_TERA = 10**12

# Dense bfloat16 teraflops by the words of a device's name, as its maker states them; the first entry whose words all
# occur counts. Lightning's own table has sparse products, or two cards, in some of its entries.
_BFLOAT16_DENSE = {
    "RTX 6000 Ada": 364.2,
    "RTX 3090 Ti": 80.0,
    "H200 NVL": 835.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}
_WEAKER = {"Laptop", "D", "MIG"}  # words of devices that share a name with a stronger one


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device.

    Returns:
        ``None`` for CPUs and for GPUs that are not in the table.
    """
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_of(name: str) -> float | None:
    """Return the peak of the device that CUDA gives this name."""
    words = set(name.replace("-", " ").split())
    if words & _WEAKER:
        return None
    for known, teraflops in _BFLOAT16_DENSE.items():
        if set(known.split()) <= words:
            return teraflops * _TERA
    return None

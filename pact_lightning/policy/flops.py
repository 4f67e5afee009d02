"""Floating-point operations of a model, and the peak of a device.

Counted are the products with linear layers, head and the experts that a token meets, two operations per weight, and
attention's two products per pair of a query and a key that it sees: within its window, where a layer has one. Linear
attention counts as its recurrence, three products with the state. Routers, norms, activations, softmax and embeddings
are left out, and so is what checkpointing computes again: the count is of the model, not of how it is run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pact_lightning.policy.experts import expert_tensors, experts_per_token
from pact_lightning.policy.own_attention import own_attention
from pact_lightning.policy.packing import Pack
from pact_lightning.policy.prefix_tree import spans


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens and pairs that go through a model.

    Attributes:
        tokens: Tokens that go through the layers.
        head_tokens: Tokens that go through the head.
        attention: Pairs of a query and a key that it sees, each as often as its heads are wide, over all layers.
    """

    tokens: int = 0
    head_tokens: int = 0
    attention: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.head_tokens + other.head_tokens, self.attention + other.attention)


def causal_pairs(tokens: int, earlier: int = 0, window: int | None = None) -> int:
    """Count pairs where every token attends to itself and to all before it.

    Args:
        tokens: The tokens.
        earlier: Tokens in front of them, which are seen and do not look.
        window: Most tokens that one sees, itself included.
    """
    if window is None or earlier + tokens <= window:
        return tokens * earlier + tokens * (tokens + 1) // 2
    growing = max(0, window - earlier)  # those that see less than a window
    return causal_pairs(growing, earlier) + (tokens - growing) * window


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """List a model's linear layers but the head, without adapters: those that QLoRA has in 4 bits."""
    source: Any = model
    head = source.get_output_embeddings()
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    ]


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Weights of a decoder that each token meets.

    Attributes:
        base: Weights of the linear layers below the head, without adapters, and of the experts chosen for a token.
        adapter: Weights of the adapters.
        head: Weights of the head.
        reach: Layers of attention by their window, as ``(width, window)``: ``heads * head_dim`` of all of them, and
            ``None`` where they attend fully.
        state: Values of the states of linear attention, over all layers.
        by_rows: Whether every sequence runs as a plain row, as in models that attend in a way of their own.
        base_trained: Whether base and head get gradients of their own.
    """

    base: int
    adapter: int
    head: int
    reach: tuple[tuple[int, int | None], ...]
    state: int
    by_rows: bool
    base_trained: bool

    @classmethod
    def of(cls, model: nn.Module) -> "FlopCount":
        """Read a transformers model, with or without a PEFT adapter; it may be on the meta device.

        Quantised layers count by their shape, not by how their weights are stored.
        """
        source: Any = model
        head = source.get_output_embeddings()
        adapter = sum(
            module.in_features * module.out_features
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and ".lora_" in name
        )
        base = sum(module.in_features * module.out_features for module in linear_layers(model))
        chosen, there = experts_per_token(source.config) or (1, 1)
        base += sum(tensor.weights for tensor in expert_tensors(model)) * chosen // there
        reach, state = _attention(source.config.get_text_config())
        return cls(
            base=base,
            adapter=adapter,
            head=head.in_features * head.out_features,
            reach=reach,
            state=state,
            by_rows=own_attention(source.config) is not None,
            base_trained=adapter == 0,
        )

    def attention(self, tokens: int, earlier: int = 0) -> int:
        """Return ``Work.attention`` of tokens behind earlier ones of their sequence."""
        return sum(width * causal_pairs(tokens, earlier, window) for width, window in self.reach)

    def of_pack(self, pack: Pack, head_tokens: int) -> Work:
        """Return the work of a pack's forward."""
        parts = [(span.length, span.before) for span in spans(pack.layouts)]
        if self.by_rows:
            ends = [span for span in spans(pack.layouts) if span.stop == span.end]
            parts = [(span.before + span.length, 0) for span in ends]
        return Work(sum(length for length, _ in parts), head_tokens, sum(self.attention(*part) for part in parts))

    def forward(self, work: Work, *, with_adapter: bool = True) -> int:
        """Return the operations of a forward pass: ``2 N`` per token, and 4 per pair and unit of attention width."""
        weights = self.base + (self.adapter if with_adapter else 0) + 3 * self.state
        return 2 * weights * work.tokens + 2 * self.head * work.head_tokens + 4 * work.attention

    def backward(self, work: Work) -> int:
        """Return the operations of a backward pass.

        ``2 N`` per token for the gradient of the activations, ``2 N`` more for that of the trained weights; attention
        has four products where the forward pass has two, and linear attention six where it has three.
        """
        activations = self.forward(work)
        trained = (self.adapter + 3 * self.state) * work.tokens
        if self.base_trained:
            trained += self.base * work.tokens + self.head * work.head_tokens
        return activations + 2 * trained + 4 * work.attention


def _attention(text: Any) -> tuple[tuple[tuple[int, int | None], ...], int]:
    """Read a text model's config: its layers of attention by their window, and the size of its linear states."""
    # Where layers differ in a field, as Gemma 4's do, transformers refuses to read it of the whole model.
    differ = getattr(text, "is_heterogeneous", False)
    layers = [text.per_layer_config[n] if differ else text for n in range(text.num_hidden_layers)]
    kinds = getattr(text, "layer_types", None) or [
        "sliding_attention" if _window(layer) else "full" for layer in layers
    ]
    reach: dict[int | None, int] = {}
    state = 0
    for kind, layer in zip(kinds, layers, strict=False):
        heads = layer.num_attention_heads
        head = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        if kind == "linear_attention":
            keys, values = (getattr(layer, f"linear_{part}_head_dim", head) for part in ("key", "value"))
            state += int(getattr(layer, "linear_num_value_heads", heads) * keys * values)
        elif "attention" in kind or kind == "full":
            window = _window(layer) if kind in ("sliding_attention", "chunked_attention") else None
            if window is None:
                head = getattr(layer, "global_head_dim", None) or head
            if getattr(layer, "qk_head_dim", None) and getattr(layer, "v_head_dim", None):
                head = (layer.qk_head_dim + layer.v_head_dim) / 2  # latent attention has two widths
            reach[window] = reach.get(window, 0) + int(heads * head)
    return tuple((width, window) for window, width in reach.items()), state


def _window(layer: Any) -> int | None:
    if not getattr(layer, "use_sliding_window", True):
        return None
    window: int | None = getattr(layer, "sliding_window", None) or getattr(layer, "attention_chunk_size", None)
    return window


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

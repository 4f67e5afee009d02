"""Floating-point operations of an update, from its lengths alone."""

from collections.abc import Sequence

from pact_lightning.policy.flops import causal_pairs
from pact_lightning.policy.packing import Pack
from pact_lightning.policy.prefix_tree import BlockLayout, spans

_LINEAR_PASSES = 3  # forward, gradient of the input, gradient of the weight
_ATTENTION_PASSES = 3.5  # 2 products forward, 5 backward with the scores made anew
_HEAD_PASSES = 4  # the logits are made anew in the backward pass
KEPT_LOGITS = 3
"""Products of a head that keeps its logits for the backward pass."""


def attended_pairs(layouts: Sequence[BlockLayout]) -> int:
    """Count the pairs of a query and a key that the causal attention of a pack lets through."""
    return sum(causal_pairs(span.length, span.before) for span in spans(layouts))


def update_flops(
    sizes: dict[str, int], packs: list[Pack], head_tokens: int, *, head_passes: int = _HEAD_PASSES
) -> float:
    """Count the operations of forward and backward in full-weight training.

    Args:
        sizes: Fields of the Qwen3 config.
        packs: The packs of the update.
        head_tokens: Tokens at which the head is run.
        head_passes: Products of the head with each of them.
    """
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    query_width = sizes["num_attention_heads"] * sizes["head_dim"]
    key_width = sizes["num_key_value_heads"] * sizes["head_dim"]
    weights = hidden * (2 * query_width + 2 * key_width + 3 * sizes["intermediate_size"])
    tokens = sum(pack.tokens for pack in packs)
    linear = 2 * weights * tokens * layers * _LINEAR_PASSES
    attention = 4 * query_width * sum(attended_pairs(pack.layouts) for pack in packs) * layers * _ATTENTION_PASSES
    head = 2 * hidden * sizes["vocab_size"] * head_tokens * head_passes
    return linear + attention + head

"""How many floating-point operations an update needs, from its lengths alone."""

from pact_lightning.policy.packing import Pack

_LINEAR_PASSES = 3  # forward, gradient of the input, gradient of the weight
_ATTENTION_PASSES = 3.5  # 2 products forward, 5 backward with the scores made anew
_HEAD_PASSES = 4  # the logits are made anew in the backward pass


def update_flops(sizes: dict[str, int], packs: list[Pack], head_tokens: int) -> float:
    """Forward and backward of full-weight training.

    Args:
        sizes: Fields of the Qwen3 config.
        packs: What is run.
        head_tokens: Tokens at which the head is run.
    """
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    query_width = sizes["num_attention_heads"] * sizes["head_dim"]
    key_width = sizes["num_key_value_heads"] * sizes["head_dim"]
    weights = hidden * (2 * query_width + 2 * key_width + 3 * sizes["intermediate_size"])
    tokens = sum(pack.tokens for pack in packs)
    linear = 2 * weights * tokens * layers * _LINEAR_PASSES
    attention = 4 * query_width * _pairs(packs) * layers * _ATTENTION_PASSES
    head = 2 * hidden * sizes["vocab_size"] * head_tokens * _HEAD_PASSES
    return linear + attention + head


def _pairs(packs: list[Pack]) -> float:
    """Pairs of tokens of which one sees the other."""
    pairs = 0.0
    for pack in packs:
        for layout in pack.layouts:
            pairs += layout.prefix * (layout.prefix + 1) / 2
            pairs += sum(length * layout.prefix + length * (length + 1) / 2 for length in layout.branches)
    return pairs

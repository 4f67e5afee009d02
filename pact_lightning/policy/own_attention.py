"""Models that attend in a way of their own: which they are, and their forward over a pack, one plain row at a time.

Attention by plan knows full causal attention alone, with keys and values of one width. Sliding windows, attention
sinks, linear and latent attention (Gemma, gpt-oss, Qwen3.5, DeepSeek V3) are left to transformers' own functions, which
know nothing of packs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pact_lightning.policy.attention.plan import ATTENTION_NAME
from pact_lightning.policy.packing import Pack
from pact_lightning.policy.prefix_tree import BlockLayout, Span, spans

AUTO_ATTENTION = "auto"
"""The ``attn_implementation`` that stands for ``pact`` where a model can attend by plan, else for transformers' own."""


def own_attention(config: Any) -> str | None:
    """Say what a model's attention has that no plan knows, by its config; ``None`` where it is full and causal.

    >>> from transformers import LlamaConfig, GptOssConfig
    >>> own_attention(LlamaConfig())
    >>> own_attention(GptOssConfig())
    'attention sinks'
    """
    text = config.get_text_config()
    if text.model_type == "gpt_oss":
        return "attention sinks"
    kinds = sorted({str(kind) for kind in getattr(text, "layer_types", None) or ()} - {"full_attention"})
    if kinds:
        return f"layers of {' and '.join(kind.replace('_', ' ') for kind in kinds)}"
    window = getattr(text, "sliding_window", None)
    if window is not None and getattr(text, "use_sliding_window", True):
        return f"a sliding window of {window} tokens"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "soft-capped scores"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "latent attention"
    return None


def attention_for(config: Any, asked: str) -> str | None:
    """Return the ``attn_implementation`` to load a model with; ``None`` for the best that transformers has for it.

    Args:
        config: The model's config.
        asked: The recipe's.
    """
    if asked != AUTO_ATTENTION:
        return asked
    return ATTENTION_NAME if own_attention(config) is None else None


def attends_by_plan(decoder: nn.Module) -> bool:
    """Return whether a decoder was loaded with ``attn_implementation="pact"``."""
    source: Any = decoder
    return bool(source.config._attn_implementation == ATTENTION_NAME)


def states_by_rows(decoder: nn.Module, pack: Pack, device: torch.device) -> Tensor:
    """Run every sequence of a pack as a plain row, and return the hidden states of the flat row, ``[T, D]``.

    What sequences share is computed in each of them, and its state taken from the first; the gradients are those of
    plain rows.
    """
    source: Any = decoder
    place = torch.full((pack.tokens,), -1)
    states: list[Tensor] = []
    done = 0
    for row in _rows(pack.layouts):
        ids = pack.ids[row][None].to(device)
        states.append(source(input_ids=ids, use_cache=False).last_hidden_state[0])  # [L, D]
        new = place[row] < 0
        place[row[new]] = (done + torch.arange(len(row)))[new]
        done += len(row)
    return torch.cat(states).index_select(0, place.to(device))


def _rows(layouts: Sequence[BlockLayout]) -> list[Tensor]:
    """List each whole sequence of a pack by its places in the flat row."""

    def places(span: Span) -> Tensor:
        return torch.cat([torch.arange(part.start, part.end) for part in (*span.path, span)])

    return [places(span) for span in spans(layouts) if span.stop == span.end]

"""Attention by plan: the function registered with transformers as ``"pact"``, and the shared-prefix plan.

A forward of a model loaded with ``attn_implementation="pact"`` takes one more keyword argument, ``attention_plan``,
which transformers hands down to every layer's attention. Without it the model attends as with ``"sdpa"``.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pact_lightning.policy.prefix_tree import BlockLayout, Span, spans

ATTENTION_NAME = "pact"
"""The ``attn_implementation`` under which models find :func:`pact_attention`."""

_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


class AttentionPlan(Protocol):
    """Attention of one forward: of its tokens to each other, and to whatever the plan itself remembers."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Attend in one layer.

        Args:
            module: The attention layer; its index is ``module.layer_idx``.
            query: ``[B, heads, T, d]``, positions already applied.
            key: ``[B, kv_heads, T, d]``, positions already applied.
            value: ``[B, kv_heads, T, d]``.
            scaling: Factor on the scores before the softmax.

        Returns:
            ``[B, T, heads, d]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes that the attention layers of a decoder share.

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
        """Read a transformers model or its decoder, with or without a PEFT adapter; it may be on the meta device."""
        source: Any = model
        config = source.config.get_text_config()
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )


def check_planned(query: Tensor, tokens: int) -> None:
    """Raise ``ValueError`` unless the input is one row of exactly the planned tokens."""
    if query.shape[0] != 1 or query.shape[2] != tokens:
        raise ValueError(
            f"the attention plan is for one row of {tokens} tokens, but the model got {query.shape[0]} rows "
            f"of {query.shape[2]}; run the pack that the plan was made from"
        )


class _Rows:
    """Spans of a flat row as the rows of a right-padded batch.

    Padded places repeat the span's first token: values that are finite and that nobody reads, with zero gradients.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], device: torch.device | str | None) -> None:
        self.spans = spans
        self.count = len(spans)
        self.length = max(length for _, length in spans)
        columns = torch.arange(self.length)  # [length]
        index = torch.stack([start + torch.where(columns < length, columns, 0) for start, length in spans]).flatten()
        first = spans[0][0]
        # A run of the flat row is read as a view: no copy forward, no scatter backward.
        self._first = first if torch.equal(index, torch.arange(first, first + len(index))) else None
        self._index = index.to(device)

    def take(self, flat: Tensor) -> Tensor:
        """Take the rows out of a flat one: ``[T, heads, d]`` -> ``[rows, heads, length, d]``."""
        if self._first is None:
            picked = flat.index_select(0, self._index)  # [rows * length, heads, d]
        else:
            picked = flat.narrow(0, self._first, self.count * self.length)
        return torch.unflatten(picked, 0, (self.count, self.length)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Branches:
    """Branches of similar length that go on from one part of a tree."""

    path: tuple[Span, ...]
    rows: _Rows
    mask: Tensor  # [R, P + R], True where a branch token may look


class SharedPrefixPlan:
    """Plan for trees in a flat row: a beginning attends causally, a branch to all that it goes on from and to itself.

    Equal, gradients included, to running every sequence on its own [D]. Beginnings of similar length share one causal
    call. The branches of a part are rows over ``[keys of its path | own keys]`` in a second call, or in several where
    their lengths are far apart. All index tensors are made once per forward, not per layer.

    Args:
        blocks: The blocks in the order of the flat row; a token's position restarts at ``P`` in every branch.
        device: Where the model runs.

    Raises:
        ValueError: There is no block.
    """

    def __init__(self, blocks: Sequence[BlockLayout], device: torch.device | str | None = None) -> None:
        beginnings: list[tuple[int, int]] = []
        branches: dict[int, tuple[tuple[Span, ...], list[tuple[int, int]]]] = {}  # by the start of what they go on from
        self.tokens = 0
        for span in spans(blocks):
            place = (span.start, span.length)
            if span.path:
                branches.setdefault(span.path[-1].start, (span.path, []))[1].append(place)
            else:
                beginnings.append(place)
            self.tokens = span.end
        self._causal = [_Rows(similar, device) for similar in _similar_lengths(beginnings)]
        self._branches = [made for path, found in branches.values() for made in _branch_rows(path, found, device)]
        self._place = self._places(device)

    @property
    def places(self) -> int:
        """Query places that are computed, padding included."""
        return sum(rows.count * rows.length for rows in self._all_rows())

    def _all_rows(self) -> list[_Rows]:
        return [*self._causal, *(branches.rows for branches in self._branches)]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Attend in one layer; see :class:`AttentionPlan`.

        Raises:
            ValueError: The input is not one row of exactly the planned tokens.
        """
        check_planned(query, self.tokens)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, d]
        pieces = [
            scaled_dot_product_attention(
                rows.take(q), rows.take(k), rows.take(v), is_causal=True, scale=scaling, enable_gqa=True
            )
            for rows in self._causal
        ]
        pieces += [_attend_branches(branches, q, k, v, scaling) for branches in self._branches]
        flat = torch.cat([piece.transpose(1, 2).flatten(0, 1) for piece in pieces])  # [places, heads, d]
        if self._place is not None:
            flat = flat.index_select(0, self._place)  # [T, heads, d]
        return flat[None]

    def _places(self, device: torch.device | str | None) -> Tensor | None:
        """Index the output of every flat token in the concatenated calls; ``None`` where it is in order already."""
        place = torch.empty(self.tokens, dtype=torch.long)  # [T]
        offset = 0
        for rows in self._all_rows():
            for row, (start, length) in enumerate(rows.spans):
                place[start : start + length] = offset + row * rows.length + torch.arange(length)
            offset += rows.count * rows.length
        in_order = offset == self.tokens and torch.equal(place, torch.arange(self.tokens))
        return None if in_order else place.to(device)


def _branch_rows(
    path: tuple[Span, ...], branches: Sequence[tuple[int, int]], device: torch.device | str | None
) -> Iterator[_Branches]:
    before = sum(span.length for span in path)
    for similar in _similar_lengths(branches):
        rows = _Rows(similar, device)
        # Lower-right causal. Padded keys stand to the right of every real query, so the mask hides them too. Every row,
        # padded or not, sees the path: no softmax runs over nothing.
        shape = (rows.length, before + rows.length)
        yield _Branches(path, rows, torch.ones(shape, dtype=torch.bool, device=device).tril(before))


def _similar_lengths(spans: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group spans: padding to a group's longest wastes at most an eighth of a row."""
    groups: list[list[tuple[int, int]]] = []
    for span in sorted(spans, key=lambda item: -item[1]):
        if groups and 8 * span[1] >= 7 * groups[-1][0][1]:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [sorted(group) for group in groups]


def _attend_branches(branches: _Branches, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Attend from branches as rows over ``[keys of their path | own keys]``: ``[K, heads, R, d]``."""

    def with_path(flat: Tensor) -> Tensor:
        own = branches.rows.take(flat)  # [K, kv_heads, R, d]
        path = (flat[span.start : span.end].transpose(0, 1) for span in branches.path)  # [kv_heads, n, d] each
        return torch.cat([*(part.expand(own.shape[0], -1, -1, -1) for part in path), own], dim=2)

    rows = branches.rows.take(q)  # [K, heads, R, d]
    groups = q.shape[1] // k.shape[1]
    # The heads that share a key head stand below each other as further queries. `enable_gqa` with a mask would make
    # CUDA take the kernel that writes out all scores, and repeating the keys would cost a copy.
    stacked = torch.unflatten(rows, 1, (k.shape[1], groups)).flatten(2, 3)  # [K, kv_heads, groups * R, d]
    mask = branches.mask.repeat(groups, 1)  # [groups * R, P + R]
    out = scaled_dot_product_attention(stacked, with_path(k), with_path(v), attn_mask=mask, scale=scaling)
    return torch.unflatten(out, 2, (groups, rows.shape[2])).flatten(1, 2)


def pact_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in a layer of a transformers model, by its plan where there is one [D].

    Args:
        module: The attention layer.
        query: ``[B, heads, T, d]``.
        key: ``[B, kv_heads, S, d]``.
        value: ``[B, kv_heads, S, d]``.
        attention_mask: The mask of :func:`pact_mask`; ``None`` except for padded or cached inputs.
        scaling: Factor on the scores, ``d ** -0.5`` when left out.
        dropout: The model's attention dropout; a plan allows none.
        attention_plan: The plan; without one, attention is causal, by transformers' own ``"sdpa"``.
        **kwargs: The model's other arguments.

    Returns:
        Output ``[B, T, heads, d]``, and no weights.

    Raises:
        ValueError: The model asks for something a plan cannot do, or a packed row came without its plan.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"attn_implementation='{ATTENTION_NAME}' knows full causal attention only, but the model asks for "
                f"{name}; choose a model without it"
            )
    if attention_plan is None:
        if attention_mask is None and getattr(module, "layer_idx", None) == 0:
            _refuse_packed_positions(kwargs.get("position_ids"))
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is not None:
        raise ValueError("an attention plan says alone who attends to whom; leave attention_mask out")
    if dropout:
        raise ValueError(f"an attention plan has no dropout; set the model's attention_dropout to 0, not {dropout}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention_plan.attend(module, query, key, value, scaling=scale), None


def _refuse_packed_positions(position_ids: Tensor | None) -> None:
    """Refuse positions that restart within a row; the first layer asks once for all of a forward."""
    if position_ids is None or position_ids.ndim != 2:
        return
    if bool((position_ids.diff(dim=-1) != 1).any()):
        raise ValueError("the positions restart within a row, so several sequences are packed: pass an attention_plan")


def pact_mask(*, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Make the mask for :func:`pact_attention`: none, unless padding or a cache needs one [D].

    Args:
        q_length: Tokens of this forward.
        kv_length: Tokens attended to, transformers' cache included.
        attention_mask: ``[B, kv_length]``, False at padding.
        **kwargs: Further arguments of transformers' mask functions.

    Returns:
        ``None`` for whole rows without padding, where causality or a plan is enough; else the mask of ``"sdpa"``.
    """
    if q_length == kv_length and (attention_mask is None or bool(attention_mask.all())):
        return None
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)
    return mask


def register_attention() -> None:
    """Let transformers' models find attention by plan under ``attn_implementation="pact"``."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, pact_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, pact_mask)


# Whoever loads a policy registers it; a program that has imported transformers may make its model by itself.
if "transformers" in sys.modules:
    register_attention()

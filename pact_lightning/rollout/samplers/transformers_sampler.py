"""Default sampler: the policy itself, with a key-value cache that is kept between turns.

Tokens are drawn by inverse transform: a uniform number picks the token in whose share of [0, 1) it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pact_lightning.policy.logprobs import decoder_and_head
from pact_lightning.policy.own_attention import attends_by_plan
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.kv_cache import ROOM_AHEAD, CachedPlan, KVCache
from pact_lightning.utils.seeds import numpy_random


@dataclass(slots=True)
class _Row:
    """Row in a slot of the cache."""

    row: int
    length: int = 0  # cached tokens
    next_token: int = 0  # sampled, but not fed yet
    limit: int = 0
    output: TurnOutput | None = None  # the turn in work
    uniforms: np.ndarray[tuple[int], np.dtype[np.float64]] = field(default_factory=lambda: np.zeros(0))


class TransformersSampler:
    """Sampler over a transformers model, on CPU or GPU, quantised or not.

    Rows advance independently. The draws of a turn depend on its seed alone, not on the rest of the batch.

    Args:
        model: Causal language model with ``attn_implementation="pact"``, with or without a PEFT adapter.
        stop_ids: Tokens that end a turn.
        sampling: Settings of the draws.
        prefill_tokens: Most tokens of one forward over prompts or observations.
    """

    by_plan = True
    """Whether the model has to attend by plan."""

    def __init__(
        self, model: nn.Module, stop_ids: Sequence[int], sampling: SamplingConfig, prefill_tokens: int = 16_384
    ) -> None:
        self._decoder, self._head = decoder_and_head(model)
        if self.by_plan and not attends_by_plan(self._decoder):
            raise ValueError(
                f"the model attends by {self._decoder.config._attn_implementation!r}, which knows no cache of rows; "  # type: ignore[union-attr]  # a transformers model
                "take OwnCacheSampler, or load it with attn_implementation='pact'"
            )
        self._stop_ids = frozenset(stop_ids)
        self._sampling = sampling
        self._prefill_tokens = prefill_tokens
        self._device = next(self._decoder.parameters()).device
        self._cache = KVCache()
        self._rows: list[_Row] = []  # by slot
        self._slot_of: dict[int, int] = {}
        self._ended: list[TurnOutput] = []

    @torch.no_grad()
    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Prefill the rows' new tokens and sample the first token of each turn."""
        same_prompt: dict[str | int, list[TurnRequest]] = {}
        for request in requests:
            if request.row not in self._slot_of:
                self._slot_of[request.row] = len(self._rows)
                self._rows.append(_Row(request.row))
            row = self._row(request)
            row.output, row.limit = TurnOutput(request.row), request.max_new_tokens
            if not self._sampling.greedy:
                row.uniforms = numpy_random("turn", request.seed).random(request.max_new_tokens)
            same_prompt.setdefault(request.shared_prompt or request.row, []).append(request)
        room = max(
            self._row(request).length + len(request.new_ids) + min(request.max_new_tokens, ROOM_AHEAD)
            for request in requests
        )
        self._cache.reserve(len(self._rows), room)
        hidden = self._prefill([group[0] for group in same_prompt.values()])
        for first, *others in same_prompt.values():
            if not others:
                continue
            length = self._row(first).length
            self._cache.copy(self._slot_of[first.row], [self._slot_of[other.row] for other in others], length)
            for other in others:
                self._row(other).length = length
                hidden[other.row] = hidden[first.row]
        slots = [self._slot_of[request.row] for request in requests]
        self._draw(slots, torch.stack([hidden[request.row] for request in requests]))  # [n, D]

    @torch.no_grad()
    def step(self) -> list[TurnOutput]:
        """Decode one token of every turn in work."""
        active = [slot for slot, row in enumerate(self._rows) if row.output is not None]
        if active:
            hidden = self._decode(active)  # [n, D]
            for slot in active:
                self._rows[slot].length += 1
            self._draw(active, hidden)
        ended, self._ended = self._ended, []
        return ended

    def _decode(self, active: Sequence[int]) -> Tensor:
        """Feed each active row's last token and return the hidden states, ``[n, D]``.

        Idle rows are computed along, which is cheaper than to copy the cache of the others. They write at their end,
        where their next observation overwrites it.
        """
        count = active[-1] + 1
        lengths = [row.length for row in self._rows[:count]]
        tokens = torch.tensor([[row.next_token] for row in self._rows[:count]], device=self._device)  # [B, 1]
        self._cache.reserve(len(self._rows), max(lengths) + 1)
        hidden = self._forward(tokens, CachedPlan(self._cache, lengths, 1, self._device))[:, 0]  # [B, D]
        return hidden[list(active)]

    def release(self, row: int) -> None:
        """Free the row's slot; the last slot's row moves into it, which leaves no gaps."""
        slot = self._slot_of.pop(row)
        moved = self._rows.pop()
        if moved.row != row:
            self._cache.copy(len(self._rows), [slot], moved.length)
            self._rows[slot] = moved
            self._slot_of[moved.row] = slot

    def _prefill(self, requests: list[TurnRequest]) -> dict[int, Tensor]:
        """Run new tokens through the model and return the hidden state of the last one, ``[D]``, by row."""
        hidden: dict[int, Tensor] = {}
        feeds = {}
        for request in requests:
            row = self._row(request)
            # The last sampled token of the turn before was never fed; it stands in front of the new ones.
            feeds[request.row] = [*([row.next_token] if row.length else []), *request.new_ids]
        order = sorted(requests, key=lambda request: len(feeds[request.row]))
        while order:
            longest = len(feeds[order[-1].row])
            batch = order[-max(1, self._prefill_tokens // longest) :]
            order = order[: -len(batch)]
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)  # [B, T], right-padded
            for n, request in enumerate(batch):
                tokens[n, : len(feeds[request.row])] = torch.tensor(feeds[request.row])
            lengths = [self._row(request).length for request in batch]
            slots = [self._slot_of[request.row] for request in batch]
            self._cache.reserve(len(self._rows), max(lengths) + longest)
            plan = CachedPlan(self._cache, lengths, longest, self._device, slots)
            states = self._forward(tokens.to(self._device), plan)  # [B, T, D]
            for n, request in enumerate(batch):
                hidden[request.row] = states[n, len(feeds[request.row]) - 1]
                self._row(request).length += len(feeds[request.row])
        return hidden

    def _row(self, request: TurnRequest) -> _Row:
        return self._rows[self._slot_of[request.row]]

    def _forward(self, tokens: Tensor, plan: CachedPlan) -> Tensor:
        output = self._decoder(input_ids=tokens, position_ids=plan.positions, attention_plan=plan, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def _draw(self, slots: list[int], hidden: Tensor) -> None:
        """Sample one token per slot from its hidden state ``[n, D]`` and end the turns that are over."""
        logits = self._head(hidden).float()  # [n, V]
        if self._sampling.temperature != 1.0:
            logits = logits / self._sampling.temperature
        probabilities = logits.softmax(-1)  # [n, V]
        if self._sampling.greedy:
            tokens = logits.argmax(-1)  # [n]
        else:
            drawn = [self._rows[slot].uniforms[len(self._turn(slot).ids)] for slot in slots]
            tokens = draw_tokens(probabilities, torch.tensor(drawn, dtype=torch.float64, device=logits.device))
        chosen = probabilities.gather(-1, tokens[:, None])[:, 0].log()  # [n]
        for slot, token, logp in zip(slots, tokens.tolist(), chosen.tolist(), strict=True):
            row, turn = self._rows[slot], self._turn(slot)
            turn.ids.append(token)
            turn.logps.append(logp)
            row.next_token = token
            turn.finished = token in self._stop_ids
            if turn.finished or len(turn.ids) == row.limit:
                self._ended.append(turn)
                row.output = None

    def _turn(self, slot: int) -> TurnOutput:
        turn = self._rows[slot].output
        assert turn is not None
        return turn


BLOCK = 128
"""Tokens of a block, whose probabilities are summed before the block is searched."""


def draw_tokens(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row: the first whose cumulative probability exceeds the row's uniform number.

    On a CPU a running sum over a whole vocabulary in float64 costs more than the head's own product. Therefore blocks
    are summed first, and only the tokens of one block are summed one by one. Sums are float64: in float32 a vocabulary
    of 150,000 would lose its tail [D].

    Args:
        probabilities: ``[n, V]``, not negative; each row has a positive sum, which need not be 1.
        uniforms: ``[n]``, in [0, 1), float64.

    Returns:
        Token ids ``[n]``.
    """
    vocabulary = probabilities.shape[1]
    whole = vocabulary - vocabulary % BLOCK
    sums = torch.unflatten(probabilities[:, :whole], 1, (-1, BLOCK)).sum(-1, dtype=torch.float64)  # [n, blocks]
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    ends = _running_sums(sums)  # [n, blocks]
    points = uniforms[:, None] * ends[:, -1:]  # [n, 1]
    block = _first_above(ends, points)  # [n, 1]
    inside = points - (ends - sums).gather(1, block)  # [n, 1], from the block's start
    tokens = block * BLOCK + torch.arange(BLOCK, device=probabilities.device)  # [n, BLOCK]
    shares = probabilities.gather(1, tokens.clamp(max=vocabulary - 1)).double()  # [n, BLOCK]
    shares = shares.masked_fill(tokens >= vocabulary, 0.0)
    return (block * BLOCK + _first_above(_running_sums(shares), inside))[:, 0]


def _running_sums(values: Tensor) -> Tensor:
    """Sum up along each row.

    CUDA has no sum of this kind that torch calls deterministic: with ``trainer.deterministic`` it raises there. The
    values are few, and the tokens that they decide are waited for anyway.
    """
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(-1).to(values.device)
    return values.cumsum(-1)


def _first_above(ends: Tensor, points: Tensor) -> Tensor:
    """Return the index of the first end above the point, ``[n, 1]``.

    Rounding may leave a point outside [0, last end). It is moved inside, since only there every share is above 0.
    """
    below_end = torch.nextafter(ends[:, -1:], torch.zeros_like(points))
    return torch.searchsorted(ends, torch.minimum(points.clamp(min=0.0), below_end), right=True)

"""Draws tokens by inverse transform: a uniform number picks the token in whose share of [0, 1) it lies.

The default sampler: the policy itself, with a key-value cache that is kept between turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pact_lightning.policy.logprobs import decoder_and_head
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.kv_cache import CachedPlan, KVCache
from pact_lightning.utils.seeds import numpy_random

BLOCK = 128
"""Tokens whose probabilities are summed before one of them is looked at."""


def draw_tokens(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's uniform number.

    A running sum over a whole vocabulary in float64 costs more than the head's own product on a CPU. So blocks are
    summed first, a block is found, and only its tokens are summed one by one. Sums are float64: a vocabulary of 150,000
    would lose its tail in float32 [D].

    Args:
        probabilities: ``[n, V]``, not negative, each row with a positive sum, which need not be 1.
        uniforms: ``[n]``, in [0, 1), float64.

    Returns:
        Token ids ``[n]``.
    """
    vocabulary = probabilities.shape[1]
    whole = vocabulary - vocabulary % BLOCK
    sums = torch.unflatten(probabilities[:, :whole], 1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    ends = sums.cumsum(-1)  # [n, blocks]
    points = uniforms[:, None] * ends[:, -1:]
    block = _first_above(ends, points)
    inside = points - (ends - sums).gather(1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=probabilities.device)  # [n, BLOCK]
    shares = probabilities.gather(1, tokens.clamp(max=vocabulary - 1)).double()
    shares = shares.masked_fill(tokens >= vocabulary, 0.0)
    return (block * BLOCK + _first_above(shares.cumsum(-1), inside))[:, 0]


def _first_above(ends: Tensor, points: Tensor) -> Tensor:
    """Index of the first end above the point, ``[n, 1]``.

    Rounding may leave a point outside [0, last end); it is moved in, so that what is found has a share above 0.
    """
    below_end = torch.nextafter(ends[:, -1:], torch.zeros_like(points))
    return torch.searchsorted(ends, torch.minimum(points.clamp(min=0.0), below_end), right=True)


@dataclass(slots=True)
class _Row:
    """A row in a slot: its cached length, the token to feed next, and the turn in work."""

    row: int
    length: int = 0
    next_token: int = 0
    limit: int = 0
    output: TurnOutput | None = None
    uniforms: np.ndarray[tuple[int], np.dtype[np.float64]] = field(default_factory=lambda: np.zeros(0))


class TransformersSampler:
    """Samples from a transformers model, on CPU or GPU, quantised or not.

    Rows advance independently. The draws of a turn depend on its seed alone, not on what else is in the batch.

    Args:
        model: A causal language model with ``attn_implementation="pact"``, with or without a PEFT adapter.
        stop_ids: Tokens that end a turn.
        sampling: How tokens are drawn.
        prefill_tokens: Upper limit on the tokens of one forward over prompts or observations.
    """

    def __init__(
        self, model: nn.Module, stop_ids: Sequence[int], sampling: SamplingConfig, prefill_tokens: int = 16_384
    ) -> None:
        self._decoder, self._head = decoder_and_head(model)
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
        """Prefills the rows' new tokens and samples the first token of each turn."""
        room = max(self._cached(request) + len(request.new_ids) + request.max_new_tokens for request in requests)
        new = [request for request in requests if request.row not in self._slot_of]
        self._cache.reserve(len(self._rows) + len(new), room)
        for request in new:
            self._slot_of[request.row] = len(self._rows)
            self._rows.append(_Row(request.row))
        leaders: dict[str | int, TurnRequest] = {}
        followers: list[TurnRequest] = []
        for request in requests:
            row = self._rows[self._slot_of[request.row]]
            row.output, row.limit = TurnOutput(request.row), request.max_new_tokens
            if not self._sampling.greedy:
                row.uniforms = numpy_random("turn", request.seed).random(request.max_new_tokens)
            first = leaders.setdefault(request.shared_prompt or request.row, request)
            if first is not request:
                followers.append(request)
        hidden = self._prefill(list(leaders.values()))
        self._follow(followers, leaders, hidden)
        slots = [self._slot_of[request.row] for request in requests]
        self._draw(slots, torch.stack([hidden[request.row] for request in requests]))

    @torch.no_grad()
    def step(self) -> list[TurnOutput]:
        """Decodes one token in every row that has a turn in work."""
        active = [slot for slot, row in enumerate(self._rows) if row.output is not None]
        if active:
            # Idle rows are computed along: cheaper than copying the cache of the others. What they write lies at
            # their end and is overwritten by their next observation.
            count = active[-1] + 1
            lengths = [row.length for row in self._rows[:count]]
            tokens = torch.tensor([[row.next_token] for row in self._rows[:count]], device=self._device)
            self._cache.reserve(len(self._rows), max(lengths) + 1)
            hidden = self._forward(tokens, CachedPlan(self._cache, lengths, 1, self._device))[:, 0]
            for slot in active:
                self._rows[slot].length += 1
            self._draw(active, hidden[active])
        ended, self._ended = self._ended, []
        return ended

    def release(self, row: int) -> None:
        """Frees the row's slot; the last slot's row moves into it, so that slots stay without gaps."""
        slot = self._slot_of.pop(row)
        moved = self._rows.pop()
        if moved.row != row:
            self._cache.copy(len(self._rows), [slot], moved.length)
            self._rows[slot] = moved
            self._slot_of[moved.row] = slot

    def _cached(self, request: TurnRequest) -> int:
        slot = self._slot_of.get(request.row)
        return 0 if slot is None else self._rows[slot].length

    def _prefill(self, requests: list[TurnRequest]) -> dict[int, Tensor]:
        """Runs new tokens through the model; hidden state of the last one, by row."""
        hidden: dict[int, Tensor] = {}
        # The last sampled token of the turn before was never fed; it stands in front of the new ones.
        feeds = {
            request.row: ([self._row(request).next_token] if self._row(request).length else []) + list(request.new_ids)
            for request in requests
        }
        order = sorted(requests, key=lambda request: len(feeds[request.row]))
        while order:
            longest = len(feeds[order[-1].row])
            batch = order[-max(1, self._prefill_tokens // longest) :]
            order = order[: -len(batch)]
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            for n, request in enumerate(batch):
                tokens[n, : len(feeds[request.row])] = torch.tensor(feeds[request.row])
            lengths = [self._row(request).length for request in batch]
            slots = [self._slot_of[request.row] for request in batch]
            self._cache.reserve(len(self._rows), max(lengths) + longest)
            plan = CachedPlan(self._cache, lengths, longest, self._device, slots)
            states = self._forward(tokens.to(self._device), plan)
            for n, request in enumerate(batch):
                hidden[request.row] = states[n, len(feeds[request.row]) - 1]
                self._row(request).length += len(feeds[request.row])
        return hidden

    def _follow(
        self, followers: list[TurnRequest], leaders: dict[str | int, TurnRequest], hidden: dict[int, Tensor]
    ) -> None:
        """Gives rows with a prompt that another row has just run a copy of its cache."""
        by_leader: dict[int, list[TurnRequest]] = {}
        for request in followers:
            by_leader.setdefault(leaders[request.shared_prompt].row, []).append(request)
        for leader, requests in by_leader.items():
            slot = self._slot_of[leader]
            length = self._rows[slot].length
            self._cache.copy(slot, [self._slot_of[request.row] for request in requests], length)
            for request in requests:
                hidden[request.row] = hidden[leader]
                self._row(request).length = length

    def _row(self, request: TurnRequest) -> _Row:
        return self._rows[self._slot_of[request.row]]

    def _forward(self, tokens: Tensor, plan: CachedPlan) -> Tensor:
        output = self._decoder(input_ids=tokens, position_ids=plan.positions, attention_plan=plan, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def _draw(self, slots: list[int], hidden: Tensor) -> None:
        """Samples one token per row from its hidden state ``[n, D]`` and ends the turns that are over."""
        logits = self._head(hidden).float()
        if self._sampling.temperature != 1.0:
            logits = logits / self._sampling.temperature
        probabilities = logits.softmax(-1)
        if self._sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            drawn = [self._rows[slot].uniforms[len(self._turn(slot).ids)] for slot in slots]
            tokens = draw_tokens(probabilities, torch.tensor(drawn, dtype=torch.float64, device=logits.device))
        chosen = probabilities.gather(-1, tokens[:, None])[:, 0].log()
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

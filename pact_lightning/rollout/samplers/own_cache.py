"""Sampler over models that attend in a way of their own: a cache of transformers' for each row.

Windows, sinks and the states of linear attention live in those caches, so rows run one after the other. Slower than
:class:`~pact_lightning.rollout.samplers.transformers_sampler.TransformersSampler`, and the same in all else.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler


class _Caches:
    """Caches by slot, in the place of one cache for all."""

    def __init__(self) -> None:
        self.by_slot: dict[int, Any] = {}

    def reserve(self, slots: int, capacity: int) -> None:
        """Do nothing: they grow by themselves."""

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copy a slot's cache into others."""
        for target in targets:
            self.by_slot[target] = copy.deepcopy(self.by_slot[source])


class OwnCacheSampler(TransformersSampler):
    """Sampler over a transformers model with attention of its own; see :class:`TransformersSampler`."""

    by_plan = False

    def __init__(
        self, model: nn.Module, stop_ids: Sequence[int], sampling: SamplingConfig, prefill_tokens: int = 16_384
    ) -> None:
        super().__init__(model, stop_ids, sampling, prefill_tokens)
        self._caches = _Caches()
        self._cache: Any = self._caches
        # transformers renames the argument.
        named = inspect.signature(type(self._decoder).forward).parameters
        self._name = "past_key_values" if "past_key_values" in named else "cache"

    def release(self, row: int) -> None:
        """Free the row's slot."""
        slot, last = self._slot_of[row], len(self._rows) - 1
        super().release(row)
        if slot != last:
            self._caches.by_slot[slot] = self._caches.by_slot[last]
        self._caches.by_slot.pop(last, None)

    def _decode(self, active: Sequence[int]) -> Tensor:
        return torch.stack([self._feed(slot, [self._rows[slot].next_token]) for slot in active])

    def _prefill(self, requests: list[TurnRequest]) -> dict[int, Tensor]:
        hidden: dict[int, Tensor] = {}
        for request in requests:
            slot, row = self._slot_of[request.row], self._row(request)
            if not row.length:
                self._caches.by_slot.pop(slot, None)
            ids = [*([row.next_token] if row.length else []), *request.new_ids]
            hidden[request.row] = self._feed(slot, ids)
            row.length += len(ids)
        return hidden

    def _feed(self, slot: int, ids: Sequence[int]) -> Tensor:
        """Run a row's new tokens and return the hidden state of the last one, ``[D]``."""
        past = self._caches.by_slot.get(slot)
        decoder: Any = self._decoder
        given = {} if past is None else {self._name: past}
        output = decoder(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=True, **given)
        self._caches.by_slot[slot] = output.past_key_values
        state: Tensor = output.last_hidden_state[0, -1]
        return state

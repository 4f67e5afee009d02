"""Shared-prefix attention by FlexAttention: one call over the flat row with a block mask, for CUDA."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad

from pact_lightning.policy.attention import BlockLayout, check_planned

_MULTIPLE = 128  # FlexAttention's block; lengths that are no multiple of it would compile anew
_RECOMPILES = 64


class FlexPlan:
    """An :class:`~pact_lightning.policy.attention.AttentionPlan` with a block mask, made once per forward [D].

    Equal, gradients included, to running every ``prefix + branch`` on its own. On CUDA it is compiled at first use; on
    a CPU it runs uncompiled, with all scores in memory, which is good for tests only.

    Args:
        blocks: The blocks in the order of the flat row.
        device: Where the model runs.

    Raises:
        ValueError: There is no block.
    """

    def __init__(self, blocks: Sequence[BlockLayout], device: torch.device | str) -> None:
        if not blocks:
            raise ValueError("an attention plan needs at least one block")
        self.tokens = sum(block.tokens for block in blocks)
        self.places = -(-self.tokens // _MULTIPLE) * _MULTIPLE
        self._compiled = torch.device(device).type == "cuda"
        block_of, branch_of = (ids.to(device) for ids in _owners(blocks, self.places - self.tokens))

        def may_look(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_block = block_of[query] == block_of[key]
            in_sight = (branch_of[key] == 0) | (branch_of[query] == branch_of[key])
            return same_block & in_sight & (key <= query)

        make = _compiled(create_block_mask) if self._compiled else create_block_mask
        self._mask = make(may_look, None, None, self.places, self.places, device=device)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Attends in one layer; see :class:`~pact_lightning.policy.attention.AttentionPlan`."""
        del module
        check_planned(query, self.tokens)
        run: Any = _compiled(flex_attention) if self._compiled else flex_attention
        padded = (pad(tensor.to(value.dtype), (0, 0, 0, self.places - self.tokens)) for tensor in (query, key, value))
        out: Tensor = run(*padded, block_mask=self._mask, scale=scaling, enable_gqa=True)
        return out[:, :, : self.tokens].transpose(1, 2)


def _owners(blocks: Sequence[BlockLayout], padding: int) -> tuple[Tensor, Tensor]:
    """Block and branch of every place, 0 for a prefix; padding is one more block, so that it sees something."""
    block_of: list[Tensor] = []
    branch_of: list[Tensor] = []
    for number, block in enumerate([*blocks, BlockLayout(padding)] if padding else blocks):
        lengths = torch.tensor([block.prefix, *block.branches])
        block_of.append(torch.full((block.tokens,), number))
        branch_of.append(torch.arange(len(lengths)).repeat_interleave(lengths))
    return torch.cat(block_of), torch.cat(branch_of)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _RECOMPILES)
    return torch.compile(function, dynamic=True)

"""One gradient per optimiser step, over all packs and processes.

Nothing distributed is written here: the strategy of the Trainer averages gradients and reduces.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pact_lightning.policy.attention.choice import AttentionChoice
from pact_lightning.policy.packing import Block, Pack, pack_blocks
from pact_lightning.policy.sharding import is_sharded, score_pack


class Updated(Protocol):
    """The module in training; ``PolicyModule`` is one."""

    attention: AttentionChoice

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer."""
        ...

    @property
    def model(self) -> nn.Module:
        """The policy."""
        ...


def gather_gradient(
    module: Updated,
    packs: Sequence[Pack],
    loss_of: Callable[[Pack], Tensor],
    backward: Callable[[Tensor], Any],
) -> None:
    """Run the packs of a step forward and backward; the gradient is the mean over the processes.

    The processes may hold different numbers of packs, or none. Replicas average once per step, after the last pack. A
    sharded policy averages in every pack, in which all processes take part: those with fewer run idle ones. Where no
    process had anything to learn from, there is no gradient.

    Args:
        module: The module in training.
        packs: This process's packs.
        loss_of: Computes the loss of a pack, this process's mean over its prompts.
        backward: Runs the backward pass of a loss.
    """
    passes = 0
    idle = idle_forwards(module, len(packs))
    with _each_for_itself(module):
        for pack in packs:
            loss = loss_of(pack)
            if loss.requires_grad:
                backward(loss)
                passes += 1
        for score in idle:
            backward(0.0 * score.sum())
    if _is_replica(module) and _largest(module.trainer, passes):
        # Its gradient is 0 and reaches every trained weight, so that the strategy averages what has been added up.
        trained = [weight for weight in module.model.parameters() if weight.requires_grad]
        backward(0.0 * torch.stack([weight.sum().float() for weight in trained]).sum())


def idle_forwards(module: Updated, own: int) -> Iterator[Tensor]:
    """Make forwards without meaning, so that this process runs as many as the one that runs the most.

    Only a sharded policy needs them, since its forwards wait for all processes. The processes agree on the number
    here, before the first of those forwards.

    Args:
        module: The module in training.
        own: Forwards of its own that this process runs.

    Returns:
        An iterator; each item is one forward's log-probabilities, which belong to nothing.
    """
    missing = _largest(module.trainer, own) - own if is_sharded(module.model) else 0
    (pack,) = pack_blocks([Block([0], [[0]])], 2)
    # A run's first forward checks the attention, by further forwards: in all processes at once, the idle ones too.
    return (score_pack(module.model, pack, attention=module.attention)[0].logp for _ in range(missing))


@contextmanager
def _each_for_itself(module: Updated) -> Iterator[None]:
    if not _is_replica(module):
        yield
        return
    strategy = module.trainer.strategy
    assert isinstance(strategy, ParallelStrategy)
    with strategy.block_backward_sync():
        yield


def _is_replica(module: Updated) -> bool:
    # Without processes there need not be a Trainer either.
    return torch.distributed.is_initialized() and isinstance(module.trainer.strategy.model, DistributedDataParallel)


def _largest(trainer: pl.Trainer, count: int) -> int:
    strategy = trainer.strategy
    return int(strategy.reduce(torch.tensor(count, device=strategy.root_device), reduce_op="max"))

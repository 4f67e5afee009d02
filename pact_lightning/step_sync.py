"""What the processes of a run agree on: one gradient per step, equally many forwards, figures over all of them.

Nothing distributed is written here: the strategy of the Trainer averages gradients and reduces, torchmetrics gathers.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torchmetrics.utilities.distributed import gather_all_tensors

from pact_lightning.policy.packing import Block, Pack, pack_blocks
from pact_lightning.policy.sharding import score_pack

if TYPE_CHECKING:
    from pact_lightning.policy_module import PolicyModule


def gather_gradient(
    module: "PolicyModule",
    packs: Sequence[Pack],
    loss_of: Callable[[Pack], Tensor],
    backward: Callable[[Tensor], Any],
) -> None:
    """Runs the packs of a step forward and backward; the gradient is the mean over the processes of what each adds up.

    The processes may hold different numbers of packs, or none. Replicas average once per step, after the last pack. A
    sharded policy averages in every pack, in which all processes take part: those with fewer run idle ones. Where no
    process had anything to learn from, there is no gradient.

    Args:
        module: The module in training.
        packs: This process's packs.
        loss_of: The loss of a pack, this process's mean over its prompts.
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


def idle_forwards(module: "PolicyModule", own: int) -> Iterator[Tensor]:
    """Forwards without meaning, by which this process makes as many as the one that makes the most.

    Only a sharded policy needs them, since its forwards wait for all processes. The processes agree on their number
    here, so that this has to be called before the first of all those forwards.

    Args:
        module: The module in training.
        own: Forwards of its own that this process is to make.

    Returns:
        Makes one forward whenever it is asked, and gives log-probabilities that belong to nothing.
    """
    missing = _largest(module.trainer, own) - own if isinstance(module.model, FSDPModule) else 0
    (pack,) = pack_blocks([Block([0], [[0]])], 2)
    # A run's first forward checks the attention, by further forwards: in all processes at once, the idle ones too.
    return (score_pack(module.model, pack, attention=module.attention)[0].logp for _ in range(missing))


def sum_over_processes(trainer: pl.Trainer, figures: Mapping[str, float]) -> dict[str, float]:
    """Adds figures up by name; a process may lack some. What no process has is 0."""
    total: dict[str, float] = defaultdict(float)
    for of_process in over_processes(trainer, figures):
        for name, value in of_process.items():
            total[name] += value
    return total


def over_processes(trainer: pl.Trainer, figures: Mapping[str, float]) -> list[dict[str, float]]:
    """The figures of every process by its rank; all of them have to call this together."""
    if trainer.world_size == 1:
        return [dict(figures)]
    text = json.dumps(dict(figures)).encode()
    gathered = gather_all_tensors(torch.tensor(list(text), dtype=torch.uint8, device=trainer.strategy.root_device))
    return [json.loads(bytes(row.tolist())) for row in gathered]


def expect_common_figures(trainer: pl.Trainer) -> None:
    """Silences Lightning's advice, once per metric, to average: what is logged is over all processes already."""
    if trainer.world_size > 1:
        warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")


def check_shares(name: str, size: int, processes: int) -> None:
    """Checks that the batch of an optimiser step can be shared: a mean of the processes' means needs equal shares.

    Raises:
        ValueError: It cannot.
    """
    if size % processes:
        raise ValueError(
            f"{name} ({size}) cannot be shared evenly by {processes} processes; make it a multiple of that"
        )


@contextmanager
def _each_for_itself(module: "PolicyModule") -> Iterator[None]:
    if not _is_replica(module):
        yield
        return
    strategy = module.trainer.strategy
    assert isinstance(strategy, ParallelStrategy)
    with strategy.block_backward_sync():
        yield


def _is_replica(module: "PolicyModule") -> bool:
    # Without processes there need not be a Trainer either.
    return torch.distributed.is_initialized() and isinstance(module.trainer.strategy.model, DistributedDataParallel)


def _largest(trainer: pl.Trainer, count: int) -> int:
    strategy = trainer.strategy
    return int(strategy.reduce(torch.tensor(count, device=strategy.root_device), reduce_op="max"))

"""TODO utils.processes."""

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torchmetrics.utilities.distributed import gather_all_tensors

if TYPE_CHECKING:
    pass


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

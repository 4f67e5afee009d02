"""The processes of a run: figures over all of them, shares of a batch, names of files.

Nothing distributed is written here: the strategy of the Trainer reduces, torchmetrics gathers.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
import torch
from torchmetrics.utilities.distributed import gather_all_tensors

Item = TypeVar("Item")


def sum_over_processes(
    trainer: pl.Trainer, figures: Mapping[str, float], *, maxima: Collection[str] = ()
) -> dict[str, float]:
    """Add figures up by name. A process may lack some; a name that none has is 0.

    Args:
        trainer: The Trainer.
        figures: This process's figures.
        maxima: Names of figures ``>= 0`` of which the largest counts instead of the sum.
    """
    total: dict[str, float] = defaultdict(float)
    for of_process in over_processes(trainer, figures):
        for name, value in of_process.items():
            total[name] = max(total[name], value) if name in maxima else total[name] + value
    return total


def over_processes(trainer: pl.Trainer, figures: Mapping[str, float]) -> list[dict[str, float]]:
    """Gather the figures of every process, by rank; all processes have to call this together."""
    if trainer.world_size == 1:
        return [dict(figures)]
    text = json.dumps(dict(figures)).encode()
    gathered = gather_all_tensors(torch.tensor(list(text), dtype=torch.uint8, device=trainer.strategy.root_device))
    return [json.loads(bytes(row.tolist())) for row in gathered]


def expect_common_figures(trainer: pl.Trainer) -> None:
    """Silence Lightning's advice, once per metric, to average: what is logged is over all processes already."""
    if trainer.world_size > 1:
        warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")


def check_shares(name: str, size: int, processes: int) -> None:
    """Check that the batch of an optimiser step can be shared: a mean of the processes' means needs equal shares.

    Raises:
        ValueError: It cannot.
    """
    if size % processes:
        raise ValueError(
            f"{name} ({size}) cannot be split evenly over {processes} processes; make it a multiple of that"
        )


def share(trainer: pl.Trainer, items: Sequence[Item]) -> list[Item]:
    """Take this process's share: every n-th, so that the shares of a batch are the batch, however many processes."""
    return list(items)[trainer.global_rank :: trainer.world_size]


def rank_suffix(trainer: pl.Trainer) -> str:
    """Return what keeps the files of several processes apart; empty for one process."""
    return f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""


def only_tries(trainer: pl.Trainer) -> bool:
    """Return whether the run is Lightning's ``fast_dev_run``, which saves nothing and removes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def run_folder(trainer: pl.Trainer) -> Path:
    """Return where the run keeps its files; all processes have to ask together."""
    return Path(trainer.log_dir or trainer.default_root_dir)

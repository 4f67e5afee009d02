"""Expert traces as training data, for supervised warm-up."""

from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset

from pact_lightning.seeds import numpy_random
from pact_lightning.tasks.schema import Task
from pact_lightning.tasks.source import TaskSource


class TraceBatches(IterableDataset[list[Task]]):
    """Batches of tasks with traces, in an order that depends on (seed, epoch) only.

    Args:
        tasks: Tasks with traces.
        batch_size: Traces per optimiser step; the last, smaller batch of an epoch is dropped.
        seed: Seed of the order.
    """

    def __init__(self, tasks: Sequence[Task], batch_size: int, seed: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.tasks) // self.batch_size

    def __iter__(self) -> Iterator[list[Task]]:
        order = numpy_random("trace-order", self.seed, self.epoch).permutation(len(self.tasks)).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [self.tasks[index] for index in order[start : start + self.batch_size]]


class TraceDataModule(pl.LightningDataModule):
    """Batches of expert traces for :class:`~pact_lightning.sft_module.SFTModule`.

    Args:
        train: Where the tasks come from; those without a trace are left out and counted.
        batch_size: Traces per optimiser step.
        seed: Seed of the order in which traces are drawn.
    """

    def __init__(self, train: TaskSource, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.train = train
        self.batch_size = batch_size
        self.seed = seed
        self._batches: TraceBatches | None = None

    def setup(self, stage: str) -> None:
        """Loads the tasks.

        Raises:
            ValueError: There are fewer traces than one batch needs.
        """
        if stage != "fit" or self._batches is not None:
            return
        tasks = self.train.load()
        with_trace = [task for task in tasks if task.trace is not None]
        if len(with_trace) < self.batch_size:
            raise ValueError(
                f"only {len(with_trace)} of {len(tasks)} training tasks have an expert trace, fewer than "
                f"data.batch_size = {self.batch_size}; add traces or lower it"
            )
        self._batches = TraceBatches(with_trace, self.batch_size, self.seed)

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """Batches of the current epoch; Lightning iterates over it anew each epoch."""
        assert self._batches is not None
        if self.trainer is not None:
            self._batches.epoch = self.trainer.current_epoch
        return DataLoader(self._batches, batch_size=None)

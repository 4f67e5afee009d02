"""TraceDataModule: batches of expert traces for supervised fine-tuning."""

from collections.abc import Iterator, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.training.evaluation import EvaluationConfig
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.utils.processes import check_shares, share
from pact_lightning.utils.seeds import numpy_random


class TraceBatches:
    """Batches of tasks with traces, in an order that depends on (seed, epoch) only.

    Args:
        tasks: Tasks with traces.
        batch_size: Traces per optimiser step; the last, smaller batch of an epoch is dropped.
        seed: Seed of the order.
        module: The module in training; ``None`` outside of a fit.
    """

    def __init__(self, tasks: Sequence[Task], batch_size: int, seed: int, module: PolicyModule | None = None) -> None:
        self.tasks = tasks
        self.batch_size = batch_size
        self.seed = seed
        self.module = module

    def __len__(self) -> int:
        return len(self.tasks) // self.batch_size

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the order and the number of batches done are known without it."""
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up an interrupted epoch; see :meth:`state_dict`."""

    def __iter__(self) -> Iterator[list[Task]]:
        epoch, done = 0, 0
        if self.module is not None:
            epoch = self.module.trainer.current_epoch
            done = self.module.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        order = numpy_random("trace-order", self.seed, epoch).permutation(len(self.tasks)).tolist()
        for number in range(done, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            if self.module is not None:
                self.module.interruption.between_steps()
                batch = share(self.module.trainer, batch)
            yield [self.tasks[index] for index in batch]


class TraceDataModule(TaskDataModule):
    """Batches of expert traces for :class:`~pact_lightning.SFTModule`.

    Args:
        train: Training tasks; those without a trace are left out and counted.
        validation: Tasks for validation by prompt-only rollouts.
        test: Tasks for ``test``.
        predict: Tasks for ``predict``.
        batch_size: Traces per optimiser step.
        evaluation: How the tasks of validation, test and prediction are rolled out.
        limits: Where the rollouts of validation end.
        max_prompt_tokens: Tasks with a longer prompt are left out, counted and logged.
        seed: Seed of the order in which traces are drawn.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    def __init__(
        self,
        *,
        train: TaskSource | None = None,
        validation: TaskSource | None = None,
        test: TaskSource | None = None,
        predict: TaskSource | None = None,
        batch_size: int = 32,
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008  # frozen
        limits: RolloutLimits = RolloutLimits(),  # noqa: B008  # frozen
        max_prompt_tokens: int = 7000,
        seed: int = 0,
        prefill_tokens: int = 16_384,
    ) -> None:
        super().__init__(
            validation=validation,
            test=test,
            predict=predict,
            evaluation=evaluation,
            limits=limits,
            max_prompt_tokens=max_prompt_tokens,
            seed=seed,
            prefill_tokens=prefill_tokens,
        )
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, not {batch_size}")
        self.sources["train"] = train
        self.batch_size = batch_size
        self._traces: list[Task] = []

    def setup(self, stage: str) -> None:
        """Load the tasks.

        Raises:
            ValueError: There are no training tasks, or fewer traces than one batch needs.
        """
        if stage == "fit" and self.sources["train"] is None:
            raise ValueError("there are no training tasks; set data.train in the recipe")
        if stage == "fit":
            check_shares("data.batch_size", self.batch_size, 1 if self.trainer is None else self.trainer.world_size)
        super().setup(stage)
        if stage != "fit" or self._traces:
            return
        tasks = self.tasks.get("train", [])
        with_trace = [task for task in tasks if task.trace is not None]
        rank_zero_info(f"{len(with_trace)} of {len(tasks)} training tasks have an expert trace")
        if len(with_trace) < self.batch_size:
            raise ValueError(
                f"only {len(with_trace)} of {len(tasks)} training tasks have an expert trace, fewer than "
                f"data.batch_size = {self.batch_size}; add traces or lower it"
            )
        self._traces = with_trace

    def train_dataloader(self) -> TraceBatches:
        """Return batches of traces, in a new order every epoch."""
        return TraceBatches(self._traces, self.batch_size, self.seed, self.module)

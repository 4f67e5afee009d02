"""Lightning's private fields: this is the only module that reads or sets them.

An exact resume needs what Lightning keeps to itself: metrics that it has not logged yet, its progress counters, the
version of a logger's folder. A release of Lightning that moves one of them ends in a sentence that names it.
"""

from operator import attrgetter
from typing import Any

import lightning
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from lightning.pytorch.strategies import ModelParallelStrategy

# The fit loop's part of a checkpoint: its counters, each with "total" and "current".
EPOCHS = "epoch_progress"
BATCHES = "epoch_loop.batch_progress"
VALIDATION_BATCHES = "epoch_loop.val_loop.batch_progress"
STATE = "epoch_loop.state_dict"
STEPS = "_batches_that_stepped"
"""In :data:`STATE`: the number under which loggers get the next step."""


def epoch_metrics(trainer: pl.Trainer, *, on_step: bool) -> dict[str, float]:
    """Return metrics that Lightning has gathered and not logged: of the step, or the epoch's means so far."""
    found = _field(trainer, "fit_loop.epoch_loop._results.metrics")(on_step=on_step)["log"]
    return {name: float(value) for name, value in found.items()}


def logs_this_step(trainer: pl.Trainer) -> bool:
    """Return whether Lightning logs the metrics of the step in work."""
    return bool(_field(trainer, "_logger_connector.should_update_logs"))


def validates_after_epoch(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the last batch of the epoch in work."""
    return bool(_field(trainer, "fit_loop.epoch_loop._should_check_val_epoch")()) and bool(sum(trainer.num_val_batches))


def cluster_environment(trainer: pl.Trainer) -> Any:
    """Return what launched the processes, such as a ``SLURMEnvironment``."""
    return _field(trainer, "_accelerator_connector.cluster_environment")


def csv_writer(logger: CSVLogger) -> ExperimentWriter | None:
    """Return what writes a logger's ``metrics.csv``; ``None`` before its first use."""
    writer: ExperimentWriter | None = _field(logger, "_experiment")
    return writer


def set_csv_writer(logger: CSVLogger, writer: ExperimentWriter) -> None:
    """Have a logger write its ``metrics.csv`` by another writer."""
    _field(logger, "_experiment")
    logger._experiment = writer


def folder_version(logger: Any) -> int | str | None:
    """Return the version of a logger's folder; ``None`` for one not chosen yet, and for loggers without versions."""
    version = getattr(logger, "_version", None)
    # The logger of fast_dev_run has a method for every name.
    return version if isinstance(version, int | str) else None


def set_folder_version(logger: Any, version: int | str | None) -> None:
    """Have a logger write to the folder of a version; loggers without versions are left alone."""
    if hasattr(logger, "_version"):
        logger._version = version


def hide_later_steps(logger: TensorBoardLogger, step: int) -> None:
    """Have TensorBoard hide what was written for later steps."""
    _field(logger, "_kwargs").setdefault("purge_step", step)


def saves_by_time(callback: ModelCheckpoint) -> bool:
    """Return whether a callback is to save each time that some time has passed."""
    return _field(callback, "_train_time_interval") is not None


def saves_distributed(strategy: ModelParallelStrategy) -> bool:
    """Return whether a strategy saves a folder with one file per process."""
    return bool(_field(strategy, "_save_distributed_checkpoint"))


def _field(owner: Any, path: str) -> Any:
    try:
        return attrgetter(path)(owner)
    except AttributeError as error:
        raise RuntimeError(
            f"lightning {lightning.__version__} has no {type(owner).__name__}.{path}, which exact resume needs; "
            "install lightning>=2.6.4,<3 in a release that has it, and report this"
        ) from error

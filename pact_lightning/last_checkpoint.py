"""Where a run goes on that is started again: at the newest whole checkpoint of its earlier starts."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.callbacks.exact_resume import saved_versions
from pact_lightning.checkpoint_files import is_remote, newest_whole


def last_checkpoint(trainer: pl.Trainer) -> str | None:
    """Finds the newest checkpoint that is whole, and lets the loggers go on in its run's folder.

    The command line calls it for ``--ckpt_path last``. In Python it stands in the place of ``"last"``, by which
    Lightning takes the newest file without a look inside::

        trainer.fit(module, data, ckpt_path=last_checkpoint(trainer))

    Args:
        trainer: The Trainer of the fit to come; its loggers have not been used yet.

    Returns:
        What to give as ``ckpt_path``: a file; ``None`` where there is none, which is told in a line; and ``"last"``
        where checkpoints are at a remote address, which is left to Lightning.
    """
    folders = _folders(trainer)
    if any(map(is_remote, folders)):
        return "last"
    found = newest_whole(path for folder in folders for path in Path(folder).glob("*.ckpt"))
    if found is None:
        places = ", ".join(folders) or "any fixed dirpath of a ModelCheckpoint"
        rank_zero_info(f"started anew: there is no checkpoint in {places}")
        return None
    path, checkpoint = found
    for logger, version in zip(trainer.loggers, saved_versions(checkpoint), strict=False):
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue
        if logger._version is None:
            logger._version = version
        if isinstance(logger, TensorBoardLogger):  # what it wrote after the checkpoint is undone
            logger._kwargs.setdefault("purge_step", int(checkpoint["global_step"]))
    return str(path)


def _folders(trainer: pl.Trainer) -> list[str]:
    """Where checkpoints of earlier starts of this run may be, SLURM's included."""
    named = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [str(folder) for folder in named if folder]
    first = trainer.loggers[0] if trainer.loggers else None
    if None in named and isinstance(first, CSVLogger | TensorBoardLogger) and first._version is not None:
        folders.append(str(Path(first.log_dir) / "checkpoints"))  # where Lightning puts them by itself
    if SLURMEnvironment.detect():
        folders.append(trainer.default_root_dir)
    return folders

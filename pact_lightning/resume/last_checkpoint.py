"""The checkpoint that ``--ckpt_path last`` resumes from: the newest intact one of the run's earlier starts."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.checkpoint_files import is_remote, newest_whole
from pact_lightning.resume.exact_resume import saved_versions
from pact_lightning.resume.lightning_internals import folder_version, hide_later_steps, set_folder_version


def last_checkpoint(trainer: pl.Trainer, weights_only: bool = True) -> str | None:
    """Find the newest checkpoint that is whole, and let the loggers go on in its run's folder.

    The command line calls it for ``--ckpt_path last``. In Python it stands in the place of ``"last"``, by which
    Lightning takes the newest file without a look inside::

        trainer.fit(module, data, ckpt_path=last_checkpoint(trainer))

    Args:
        trainer: The Trainer of the fit to come; its loggers have not been used yet.
        weights_only: What the fit is given too: false if checkpoints may hold any object, all of which is trusted.

    Returns:
        What to give as ``ckpt_path``: a file; ``None`` where there is none, which is told in a line; and ``"last"``
        where checkpoints are at a remote address, which is left to Lightning.

    Raises:
        TypeError: The checkpoint holds more than weights and plain values.
        ValueError: It holds the weights alone.
    """
    folders = _folders(trainer)
    if any(map(is_remote, folders)):
        return "last"
    found = newest_whole(_files(folders), weights_only)
    if found is None:
        rank_zero_info(f"started anew: there is no checkpoint in {_places(folders)}")
        return None
    path, checkpoint = found
    check_resumable(path, checkpoint)
    for logger, version in zip(trainer.loggers, saved_versions(checkpoint), strict=False):
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue
        if folder_version(logger) is None:
            set_folder_version(logger, version)
        if isinstance(logger, TensorBoardLogger):  # what it wrote after the checkpoint is undone
            hide_later_steps(logger, int(checkpoint["global_step"]))
    return str(path)


def evaluated_checkpoint(trainer: pl.Trainer, weights_only: bool = True) -> str:
    """Find the newest checkpoint that is whole, for a validation, a test or a prediction; changes nothing.

    Args:
        trainer: The Trainer, with the callbacks of the fit.
        weights_only: As for :func:`last_checkpoint`.

    Returns:
        What to give as ``ckpt_path``: a file, or ``"last"`` where checkpoints are at a remote address.

    Raises:
        FileNotFoundError: There is none; scores of the untrained policy would pass for its own [D].
        TypeError: It holds more than weights and plain values.
    """
    folders = _folders(trainer)
    if any(map(is_remote, folders)):
        return "last"
    found = newest_whole(_files(folders), weights_only, put_aside=False)
    if found is None:
        raise FileNotFoundError(
            f"there is no whole checkpoint in {_places(folders)}; name a file by --ckpt_path, or leave it out to "
            "evaluate the policy as it is loaded"
        )
    return str(found[0])


def check_resumable(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that a fit cannot go on from.

    Raises:
        ValueError: It holds the weights alone.
    """
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"the checkpoint {path} holds the weights alone, as ModelCheckpoint writes them with save_weights_only; a "
            "fit cannot go on from it, but validate, test and predict can: name another one, or move it away"
        )


def _files(folders: Iterable[str]) -> Iterator[Path]:
    return (path for folder in folders for path in Path(folder).glob("*.ckpt"))


def _places(folders: Iterable[str]) -> str:
    return ", ".join(folders) or "any fixed dirpath of a ModelCheckpoint"


def _folders(trainer: pl.Trainer) -> list[str]:
    """List the folders where earlier starts of this run may have left checkpoints, SLURM's included."""
    named = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [str(folder) for folder in named if folder]
    first = trainer.loggers[0] if trainer.loggers else None
    if None in named and isinstance(first, CSVLogger | TensorBoardLogger) and folder_version(first) is not None:
        folders.append(str(Path(first.log_dir) / "checkpoints"))  # where Lightning puts them by itself
    if SLURMEnvironment.detect():
        folders.append(trainer.default_root_dir)
    return folders

"""The checkpoint that ``--ckpt_path last`` resumes from: the newest intact one of the run's earlier starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.checkpoint_files import is_remote, newest_whole
from pact_lightning.resume.exact_resume import saved_versions, what_is_wrong
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
        rank_zero_info(f"started from the beginning: there is no checkpoint in {_places(trainer, folders)}")
        # Stopped before its first checkpoint, a run has left the rollouts of its first phase.
        if begun := [folder for folder in map(Path, folders) if (folder / "rollouts").is_dir()]:
            _set_versions(trainer, [_version_of(trainer, begun[-1])] * len(trainer.loggers))
        return None
    path, checkpoint = found
    check_resumable(path, checkpoint)
    go_on_in_its_folder(trainer, path, checkpoint)
    return str(path)


def go_on_in_its_folder(trainer: pl.Trainer, path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Let the loggers write to the folder of the run that a checkpoint is of.

    Args:
        trainer: The Trainer of the fit to come.
        path: The checkpoint. One beside whose folder the loggers would count theirs gives the version, however the
            folder came there; else the checkpoint's own word does, if it lies where this run keeps its checkpoints.
        checkpoint: Its content.
    """
    version = _version_of(trainer, path.parent)
    if version is not None:
        _set_versions(trainer, [version] * len(trainer.loggers))
    elif path.parent.resolve() in {Path(folder).resolve() for folder in _folders(trainer)}:
        _set_versions(trainer, saved_versions(checkpoint))
    else:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):  # what it wrote after the checkpoint is undone
            hide_later_steps(logger, int(checkpoint["global_step"]))


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
            f"there is no complete checkpoint in {_places(trainer, folders)}; give a file with --ckpt_path, "
            "or leave it out to evaluate the policy as loaded"
        )
    return str(found[0])


def check_resumable(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that a fit cannot go on from.

    Raises:
        ValueError: It holds the weights alone, or what an exact resume needs is of another form.
    """
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"the checkpoint {path} contains only the weights, as ModelCheckpoint writes them with save_weights_only; "
            "a fit cannot resume from it, but validate, test and predict can use it: give another one, or move it away"
        )
    if problem := what_is_wrong(checkpoint):
        raise ValueError(f"a fit cannot resume from the checkpoint {path}: {problem}; use an earlier one")


def _files(folders: Iterable[str]) -> Iterator[Path]:
    return (path for folder in folders for path in Path(folder).glob("*.ckpt"))


def _places(trainer: pl.Trainer, folders: Iterable[str]) -> str:
    first = _first_logger(trainer)
    counted = "any dirpath of a ModelCheckpoint" if first is None else f"{first.root_dir}/version_*/checkpoints"
    return ", ".join(folders) or counted


def _first_logger(trainer: pl.Trainer) -> CSVLogger | TensorBoardLogger | None:
    first = trainer.loggers[0] if trainer.loggers else None
    return first if isinstance(first, CSVLogger | TensorBoardLogger) else None


def _version_of(trainer: pl.Trainer, checkpoints: Path) -> int | None:
    """Return the version whose folder has these checkpoints; ``None`` for a place where the logger counts none."""
    first = _first_logger(trainer)
    folder = checkpoints.absolute().parent
    if first is None or checkpoints.name != "checkpoints" or folder.parent != Path(first.root_dir).absolute():
        return None
    number = folder.name.removeprefix("version_")
    return int(number) if folder.name.startswith("version_") and number.isdecimal() else None


def _set_versions(trainer: pl.Trainer, versions: Sequence[int | str | None]) -> None:
    for logger, version in zip(trainer.loggers, versions, strict=False):
        if isinstance(logger, CSVLogger | TensorBoardLogger) and folder_version(logger) is None:
            set_folder_version(logger, version)


def _number(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _folders(trainer: pl.Trainer) -> list[str]:
    """List the folders where earlier starts of this run may have left checkpoints, SLURM's included."""
    named = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [str(folder) for folder in named if folder]
    first = _first_logger(trainer)
    if None in named and first is not None:  # where Lightning puts them by itself
        if is_remote(first.root_dir):
            return [*folders, first.root_dir]
        counted = folder_version(first) is None
        runs = sorted(Path(first.root_dir).glob("version_*"), key=_number) if counted else [Path(first.log_dir)]
        folders += [str(run / "checkpoints") for run in runs if (run / "checkpoints").is_dir() or not counted]
    if SLURMEnvironment.detect():
        folders.append(trainer.default_root_dir)
    return folders

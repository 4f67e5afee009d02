"""Checkpoint files: written whole, checked before they are trusted, the newest whole one found."""

import os
import pickle
import re
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

_SAVED_AT = "saved_at_ns"


class CheckpointNotWrittenError(OSError):
    """A checkpoint could not be written; the one before it stays."""


class WholeFileIO(TorchCheckpointIO):
    """Checkpoint IO that writes a file beside its place, onto the disk, and only then gives it its name.

    Lightning's own way makes the file in the system's folder for temporary files and moves it; between two file systems
    a move is a copy, which a kill can leave half done.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; one at a remote address is left to Lightning.

        Raises:
            OSError: It could not be written; what was there under its name stays.
        """
        if storage_options is not None or is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name("checkpoint.partial")  # one name: what a kill leaves is overwritten next time
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint | {_SAVED_AT: time.time_ns()}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:  # torch covers the system's word by one on its own position
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise CheckpointNotWrittenError(
                f"the checkpoint {target} could not be written ({cause}); free some disk space or fix the folder, "
                "and resume from the previous checkpoint, which is unchanged"
            ) from error
        finally:
            partial.unlink(missing_ok=True)  # there only where an error has left it
        _sync_folder(target.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; a file of this machine only if it is whole.

        By default only weights and plain values are read [D]; Lightning would unpickle what is behind a URL.

        Raises:
            ValueError: It is not.
            TypeError: It holds more than weights and plain values.
            FileNotFoundError: It is not there.
        """
        if not is_remote(path) and Path(path).is_file():
            try:
                _check_whole(Path(path))
            except ValueError as error:
                raise ValueError(
                    f"{error}; use an earlier one, or ckpt_path=pact_lightning.last_checkpoint(trainer) for a fit and "
                    "pact_lightning.evaluated_checkpoint(trainer) otherwise, which take the newest complete one"
                ) from error
        try:
            return super().load_checkpoint(path, map_location, weights_only is not False)
        except pickle.UnpicklingError as error:
            raise _not_plain(path, error) from error


def use_whole_files(trainer: pl.Trainer) -> None:
    """Have a Trainer write and read checkpoints by :class:`WholeFileIO`, unless a plugin of the user's does."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFileIO()


def is_remote(path: Any) -> bool:
    """Return whether a path is an address and no file of this machine."""
    return "://" in str(path)


def read_checkpoint(path: Path, weights_only: bool = True, *, check: bool = True) -> dict[str, Any]:
    """Read a checkpoint; tensors stay on the disk until they are used.

    Args:
        path: The file.
        weights_only: Whether only weights and plain values are read; other objects may run code as they are read.
        check: Whether all of the file is read and compared with its checksums.

    Raises:
        ValueError: The file is cut off, changed, or no checkpoint.
        TypeError: It is whole, but holds more than weights and plain values.
    """
    if check:
        _check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(path, error) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {path} is truncated or not a checkpoint: {error}") from error
    if not isinstance(content, dict) or "loops" not in content:
        raise ValueError(f"the file {path} is not a checkpoint of a run")
    return content


def _without_folders(paths: Iterable[Path]) -> list[Path]:
    """Leave out folders that have a checkpoint's name, as a strategy that saves by shards or a hand has made them."""
    found = list(paths)
    for folder in filter(Path.is_dir, found):
        rank_zero_warn(f"{folder} is a folder, not a checkpoint; it is skipped")
    return [path for path in found if not path.is_dir()]


def newest_whole(
    paths: Iterable[Path], weights_only: bool = True, put_aside: bool = True
) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest checkpoint that is whole, and read it; each newer one that is not is logged in a line.

    A checkpoint says itself when it was saved, since a copied folder has other dates [D]. The step would not do: a run
    that has gone on from an earlier checkpoint leaves later steps of its former way beside its own.

    Args:
        paths: Checkpoint files.
        weights_only: As for :func:`read_checkpoint`.
        put_aside: Whether a damaged one that is called ``last`` gets another name: beside it Lightning would call the
            next one that it writes ``last-v1`` [D].

    Raises:
        TypeError: The newest whole one holds more than weights and plain values; nothing is wrong with it, so an
            older one would not do.
    """
    for path in sorted(_without_folders(paths), key=lambda path: _saved_at(path, weights_only), reverse=True):
        try:
            return path, read_checkpoint(path, weights_only)
        except FileNotFoundError:  # another process has put it aside at this moment
            continue
        except ValueError as error:
            told = f"{error}; the previous one is used"
            if put_aside and path.name.startswith("last"):
                aside = path.with_name(f"{path.name}.damaged")
                _put_aside(path, aside)
                told += f", and this one is now {aside.name}"
            rank_zero_warn(told)
    return None


@rank_zero_only
def _put_aside(path: Path, aside: Path) -> None:
    path.replace(aside)


def _saved_at(path: Path, weights_only: bool) -> int:
    """Return when a checkpoint was saved, in nanoseconds since 1970; the file's date where it does not say."""
    try:
        date = path.stat().st_mtime_ns
        with zipfile.ZipFile(path) as file:  # reads the small part that is unpickled below, against its checksum
            for name in file.namelist():
                if name.endswith("/data.pkl"):
                    file.read(name)
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except FileNotFoundError:
        return 0
    except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError):  # newest_whole says what is wrong
        return date
    return int(content.get(_SAVED_AT, date)) if isinstance(content, dict) else date


def _not_plain(path: Any, error: pickle.UnpicklingError) -> TypeError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    return TypeError(
        f"the checkpoint {path} holds an object ({named[1] if named else 'of a type that torch does not name'}) beside "
        "weights and plain values, and reading it might run code; if you trust the file, give --weights_only false "
        "(in Python: weights_only=False), and let the state_dict() of your callbacks return plain values from now on"
    )


def _check_whole(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {path} is truncated or not a checkpoint: {error}") from error
    if damaged is not None:
        raise ValueError(f"the checkpoint {path} is damaged at {damaged}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

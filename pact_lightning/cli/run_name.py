"""Folder of a run: the one place that decides where a recipe's run keeps its files.

It is ``runs/NAME/version_N``, for metrics, trajectories, checkpoints and what is exported. The name is that of the
recipe's file with those of its overlays behind it, or what ``--name`` says. A recipe may name folders itself; overlays
then change these names in the same way, unless an overlay or an option names folders too. ``--name`` changes them
whoever names them, but for a folder that is an option beside it.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pact_lightning.resume.checkpoint_files import is_remote

ROOT = "runs"

_UNNAMED = "lightning_logs"
"""The name that Lightning gives a logger without one."""
_LOGGERS = ("CSVLogger", "TensorBoardLogger")
_FOLDERS = ("dirpath", "save_dir", "default_root_dir")
_RECIPE = ("-c", "--config")


def put_into_run_folder(config: Namespace, arguments: Sequence[str]) -> None:
    """Give a run the folder of its name: loggers, and with them checkpoints, trajectories and exports.

    Args:
        config: The command's parsed fields, changed in place.
        arguments: The command line.
    """
    recipes = [path for path in _recipe_files(arguments) if path.is_file()]
    given, overlays = config.get("name"), [path.stem for path in recipes[1:]]
    name = given or "-".join(path.stem for path in recipes) or "run"
    config["name"] = None  # a saved config has its folders named
    trainer = config.trainer
    _put_metrics_csv_first(trainer)
    optional = {option.partition("=")[0].rpartition(".")[2] for option in arguments if option.startswith("--")}
    stated = {key for path in recipes[1:] for key in _keys(yaml.safe_load(path.read_text(encoding="utf-8")))} | optional
    tag = given or "-".join(overlays)
    if given:
        _rename(trainer, lambda _: given, optional)
    elif overlays and not stated.intersection(_FOLDERS):
        _rename(trainer, _with_suffix(f"-{tag}"))
    if tag and "folder" not in stated:
        for export in _items(trainer.get("callbacks"), ("ExportPolicy",)):
            if export.get("folder"):
                export["folder"] = _last_part(str(export.folder), _with_suffix(f"-{tag}"))
    loggers = _items(trainer.logger, _LOGGERS)
    for logger in loggers:
        if logger.get("name", _UNNAMED) == _UNNAMED:
            logger["name"] = name
            if logger is not loggers[0]:  # beside the first one, whose version it shares
                logger["name"], logger["save_dir"] = loggers[0].get("name"), loggers[0].save_dir
    if trainer.get("default_root_dir") is None:
        where = Path(loggers[0].save_dir, loggers[0].get("name") or "") if loggers else Path(ROOT, name)
        trainer["default_root_dir"] = str(where)


def _put_metrics_csv_first(trainer: Namespace) -> None:
    """Add the logger of ``metrics.csv`` where the first logger named is not one that gives a run its folder.

    Lightning's folder of a run is that of the first logger, and of most of them it is where the command was given.
    """
    given = trainer.get("logger")
    if isinstance(given, bool):
        return
    loggers = given if isinstance(given, list) else [] if given is None else [given]
    if not _items(loggers[:1], _LOGGERS):
        save_dir = trainer.get("default_root_dir") or ROOT
        usual = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": save_dir}}
        trainer["logger"] = [dict_to_namespace(usual), *loggers]


def remove_if_empty(trainer: pl.Trainer | None) -> None:
    """Remove the folders that loggers have made for a run which was refused before it wrote anything."""
    for logger in trainer.loggers if trainer is not None else ():
        if not isinstance(logger, CSVLogger | TensorBoardLogger) or is_remote(logger.root_dir):
            continue
        folder = Path(logger.log_dir)
        content = list(folder.glob("*"))
        if any(not file.match(f"events.out.tfevents.*.{os.getpid()}.*") for file in content):
            continue
        for file in content:
            file.unlink()
        for empty in (folder, folder.parent):
            with suppress(OSError):  # it is not there, or holds another run
                empty.rmdir()


def _rename(trainer: Namespace, rename: Callable[[str], str], kept: Collection[str] = ()) -> None:
    """Change the names of the folders that a recipe names itself, but for the fields that are kept."""
    for logger in _items(trainer.logger, _LOGGERS):
        if logger.get("name", _UNNAMED) == _UNNAMED:
            continue
        if isinstance(logger.get("version"), str):
            logger["version"] = rename(logger.version)
        elif logger.get("name"):
            logger["name"] = rename(logger.name)
        elif "save_dir" not in kept:
            logger["save_dir"] = _last_part(str(logger.save_dir), rename)
    for checkpoint in _items(trainer.get("callbacks"), ("ModelCheckpoint",)):
        if checkpoint.get("dirpath") and "dirpath" not in kept:
            folder = Path(checkpoint.dirpath)
            inner = folder.name == "checkpoints" and len(folder.parts) > 1
            run = _last_part(str(folder.parent if inner else folder), rename)
            checkpoint["dirpath"] = str(Path(run, "checkpoints")) if inner else run
    if trainer.get("default_root_dir") and "default_root_dir" not in kept:
        trainer["default_root_dir"] = _last_part(str(trainer.default_root_dir), rename)


def _with_suffix(suffix: str) -> Callable[[str], str]:
    return lambda name: name if name.endswith(suffix) else name + suffix


def _last_part(path: str, rename: Callable[[str], str]) -> str:
    """Rename a path's last part; what stands for the present folder gets a folder in it."""
    head, slash, last = path.rstrip("/").rpartition("/")
    return f"{path}/{rename('run')}" if last in ("", ".", "..") else f"{head}{slash}{rename(last)}"


def _items(found: Any, classes: Collection[str]) -> list[Namespace]:
    """Return the arguments of the objects of some classes, from a field that has one object, several or none."""
    items = found if isinstance(found, list) else [found]
    return [
        item.init_args
        for item in items
        if isinstance(item, Namespace)
        and item.class_path.rpartition(".")[2] in classes
        and item.get("init_args") is not None
    ]


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        replaced = {str(key): inner for key, inner in value.items() if not str(key).endswith("+")}
        yield from replaced
        value = list(replaced.values())
    if isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def _recipe_files(arguments: Sequence[str]) -> Iterator[Path]:
    for number, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in _RECIPE and equals:
            yield Path(value)
        elif word in _RECIPE and number + 1 < len(arguments):
            yield Path(arguments[number + 1])

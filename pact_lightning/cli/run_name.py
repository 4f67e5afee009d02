"""Folder of a run: the one place that decides where a recipe's run keeps its files.

It is ``runs/NAME/version_N``, for metrics, trajectories, checkpoints and what is exported. The name is that of the
recipe's file with those of its overlays behind it, or what ``--name`` says. A recipe may name folders itself; overlays
and ``--name`` then change these names in the same way, unless an overlay or an option names folders too.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, dict_to_namespace

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
    if trainer.get("logger") is None:
        save_dir = trainer.get("default_root_dir") or ROOT
        usual = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": save_dir}}
        trainer["logger"] = dict_to_namespace(usual)
    stated = {key for path in recipes[1:] for key in _keys(yaml.safe_load(path.read_text(encoding="utf-8")))}
    stated |= {option.partition("=")[0].rpartition(".")[2] for option in arguments if option.startswith("--")}
    tag = given or "-".join(overlays)
    if tag and not stated.intersection(_FOLDERS):
        _rename(trainer, (lambda _: given) if given else _with_suffix(f"-{tag}"))
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


def _rename(trainer: Namespace, rename: Callable[[str], str]) -> None:
    """Change the names of the folders that a recipe names itself."""
    for logger in _items(trainer.logger, _LOGGERS):
        if logger.get("name", _UNNAMED) == _UNNAMED:
            continue
        if isinstance(logger.get("version"), str):
            logger["version"] = rename(logger.version)
        elif logger.get("name"):
            logger["name"] = rename(logger.name)
        else:
            logger["save_dir"] = _last_part(str(logger.save_dir), rename)
    for checkpoint in _items(trainer.get("callbacks"), ("ModelCheckpoint",)):
        if checkpoint.get("dirpath"):
            folder = Path(checkpoint.dirpath)
            inner = folder.name == "checkpoints" and len(folder.parts) > 1
            run = _last_part(str(folder.parent if inner else folder), rename)
            checkpoint["dirpath"] = str(Path(run, "checkpoints")) if inner else run
    if trainer.get("default_root_dir"):
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

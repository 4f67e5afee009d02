"""Names that come near one that is not known: options of a recipe, and the package's public names."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from jsonargparse import ArgumentParser

import pact_lightning
from pact_lightning.utils.imports import import_path

_OPTION = re.compile(r"^Option '(.+?)' is not accepted$")
_IN_GROUP = re.compile(r"^Group '(.+?)' does not accept option '(.+?)'$")
_IN_COMMAND = re.compile(r"^Subcommand '\w+' does not accept option '(.+?)'$")
_WORD = re.compile(r"^unrecognized arguments: --([\w.]+)")
_NAME = re.compile(r"module 'pact_lightning' has no attribute '(\w+)'")
TOP = ("model", "data", "trainer", "seed_everything", "ckpt_path", "name", "weights_only")
"""Fields of a recipe."""
_HEADS = {
    "model.init_args": "pact_lightning.PACTModule",
    "data.init_args": "pact_lightning.RolloutDataModule",
    "trainer": "lightning.pytorch.Trainer",
}
"""What options of the command line begin with, and a class that has most of them."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names what comes nearest; empty where nothing does."""
    by_letters = {word.lower(): word for word in sorted(known, reverse=True)}
    near = get_close_matches(name.lower(), by_letters, n=1, cutoff=0.6)
    return f"; did you mean {by_letters[near[0]]!r}?" if near else ""


def remedy(line: str, class_path: str | None) -> str:
    """Return what to add to a parser's sentence on an option or a name that it does not know.

    Args:
        line: The sentence.
        class_path: The class whose options are given; ``None`` for the command's own.
    """
    if (found := _NAME.search(line)) is not None:
        return did_you_mean(found[1], pact_lightning.__all__)
    if (found := _OPTION.match(line)) is not None:
        return _among(found[1].partition(".")[0], TOP if class_path is None else _options(class_path))
    if (found := _IN_GROUP.match(line)) is not None:
        group, name = found[1], found[2]
        of = class_path if class_path is not None else _HEADS.get(group)
        inside = _options(of) if class_path is None else _below(group, _options(of))
        return _among(name, inside)
    if (found := _IN_COMMAND.match(line)) is not None:
        group, _, name = found[1].partition(".")
        return _among(name, _options(_HEADS[group])) if group in _HEADS else _among(group, TOP)
    if (found := _WORD.match(line)) is not None:
        if class_path is not None:
            group, _, name = found[1].rpartition(".")
            return _among(name, _below(group, _options(class_path)) if group else _options(class_path))
        return _on_the_command_line(found[1])
    return ""


def _among(name: str, options: Sequence[str]) -> str:
    known = list(dict.fromkeys(option.partition(".")[0] for option in options))
    near = did_you_mean(name, known)
    return near or (f"; the options here are {', '.join(known)}" if known else "")


def _on_the_command_line(word: str) -> str:
    """Find an option that is given without what stands in front of it, or is mistyped."""
    known = [f"{head}.{option}" for head, class_path in _HEADS.items() for option in _options(class_path)]
    ends = [option for option in known if option.endswith(f".{word}")]
    near = ends[:1] or get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean --{near[0]}?" if near else ""


def _below(group: str, options: Iterable[str]) -> list[str]:
    return [option.removeprefix(f"{group}.") for option in options if option.startswith(f"{group}.")]


def _options(class_path: str | None) -> list[str]:
    """List the options of a class, those of its dataclasses behind a dot; none for one that cannot be read."""
    if class_path is None:
        return []
    found = import_path(class_path, "class")
    if not isinstance(found, type):
        return []
    parser = ArgumentParser()
    parser.add_class_arguments(found)
    return list(parser.get_defaults().keys())

"""Imports by dotted path, of classes and functions of the user's own, with one-sentence errors."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pact_lightning.utils.errors import FAILURES, failure_reason, named_failure

_PACKAGE = __name__.partition(".")[0]


def import_path(path: str, what: str) -> Any:
    """Import what a path such as ``package.module.Class`` names.

    Args:
        path: The path.
        what: What it is for, for the error: ``reward``, say.

    Raises:
        ImportError: It names nothing: ``the <what> <path> cannot be imported: <why>``.
    """
    module, _, name = path.rpartition(".")
    if not all(path.split(".")):
        raise _nothing(what, path, "it has an empty part; give module and name, such as `my_module.MyClass`")
    if not module:
        raise _nothing(what, path, f"give its module too, such as `my_module.{name}`")
    try:
        return getattr(importlib.import_module(module), name)
    except FAILURES as error:  # an import runs a module of anybody's
        raise _nothing(what, path, _why(error)) from error


def import_module(path: str, what: str = "module") -> ModuleType:
    """Import a module.

    Args:
        path: Its path.
        what: What it is for, for the error.

    Raises:
        ImportError: There is none.
    """
    if not all(path.split(".")):
        raise _nothing(what, path, "it has an empty part; give a path such as `my_package.my_module`")
    try:
        return importlib.import_module(path)
    except FAILURES as error:
        raise _nothing(what, path, _why(error)) from error


def make_object(path: str, what: str, init_args: Mapping[str, Any] | None = None) -> Any:
    """Import a class and make an object of it.

    Args:
        path: Import path of the class.
        what: What it is for, for the error.
        init_args: Its constructor arguments.

    Raises:
        ImportError: The class cannot be found.
        ValueError: It does not take the arguments.
    """
    cls = import_path(path, what)
    try:
        return cls(**(init_args or {}))
    except TypeError as error:
        raise ValueError(f"the {what} {path!r} cannot be created: {error}") from error


def new_path(path: str) -> str:
    """Return ``"; <path> is now <short path>"`` for a public name of this package at a place that it has left.

    Args:
        path: A path that cannot be imported.

    Returns:
        An empty string for every other path.
    """
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    homes = sys.modules[_PACKAGE]._HOMES
    short = f"{package}.{name}"
    if package != _PACKAGE or name not in homes or path in (short, f"{package}.{homes[name]}.{name}"):
        return ""
    return f"; {path} is now {short}"


def _why(error: BaseException) -> str:
    """Say why an import failed: by the message alone where there is no such name, with the class where code failed."""
    missing = isinstance(error, ImportError | AttributeError | ValueError)
    return failure_reason(error) if missing else f"it ends in {named_failure(error)}"


def _nothing(what: str, path: str, why: object) -> ImportError:
    return ImportError(f"the {what} {path!r} cannot be imported: {why}{new_path(path)}")

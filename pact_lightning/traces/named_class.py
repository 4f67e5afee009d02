"""Makes an object of a class that is named by its import path."""

import importlib
from collections.abc import Mapping
from typing import Any


def make_object(what: str, class_path: str, init_args: Mapping[str, Any] | None = None) -> Any:
    """Imports a class and makes an object of it.

    Args:
        what: What it is for, for the error.
        class_path: Import path of the class.
        init_args: Its constructor arguments.

    Raises:
        ImportError: The class cannot be found.
        ValueError: It does not take the arguments.
    """
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"the {what} {class_path!r} cannot be imported: {error}") from error
    try:
        return cls(**(init_args or {}))
    except TypeError as error:
        raise ValueError(f"the {what} {class_path!r} cannot be made: {error}") from error

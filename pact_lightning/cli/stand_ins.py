"""Stand-ins for libraries that Lightning imports, and that a command which only prints never asks.

A config or a help needs the signatures of Lightning's classes. To import them takes torch's compiler, scipy.signal and
transformers along, longer than all the rest: Lightning takes one class of the first, and torchmetrics, which Lightning
imports, a few names of the others.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def _unchanged(function: Any, *_: Any, **__: Any) -> Any:
    """Stand for a decorator."""
    return function


def _classes(*names: str) -> dict[str, Any]:
    return {name: type(name, (), {}) for name in names}


NAMES: dict[str, dict[str, Any]] = {
    "torch._dynamo": {**_classes("OptimizedModule"), "disable": _unchanged},
    # torchmetrics gives it this old name of a window where it is missing.
    "scipy.signal": {"hamming": None},
    "transformers": _classes(
        "AutoModel", "AutoTokenizer", "CLIPModel", "CLIPProcessor", "PreTrainedModel", "PreTrainedTokenizerBase"
    ),
}
"""Names that are asked for during the import of Lightning, by module, and what stands for each."""


@contextmanager
def stand_ins(names: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let modules be imported that take some names of others, which are not imported for it.

    Any further name, and any module below, loads the real module. So does an import after the block; those who
    imported within keep what stood for their names. A module that is loaded or is not installed needs no stand-in.

    Args:
        names: Names with what stands for them, by module.
    """
    made: dict[str, ModuleType] = {}
    for module in names:
        if module not in sys.modules and (stand_in := _stand_in(module, names[module])) is not None:
            made[module] = sys.modules[module] = stand_in
    try:
        yield
    finally:
        for module, stand_in in made.items():
            if sys.modules.get(module) is stand_in:
                del sys.modules[module]


def only_prints(arguments: Sequence[str]) -> bool:
    """Return whether a command line of fit, validate, test or predict ends with a help or a config.

    Args:
        arguments: The command line.
    """
    options = {word.partition("=")[0] for word in arguments}
    return bool(options & {"-h", "--help", "--print_config"})


def _stand_in(name: str, names: Mapping[str, Any]) -> ModuleType | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # nor is the package around it installed
        return None
    if spec is None:
        return None
    stand_in = ModuleType(name)

    def real() -> ModuleType:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return importlib.import_module(name)

    def other(attribute: str) -> Any:
        if attribute.startswith("__"):  # `import` asks for some that a module need not have
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(real(), attribute)

    vars(stand_in).update(names, __spec__=spec, __file__=spec.origin, __path__=_Folders(real), __getattr__=other)
    return stand_in


class _Folders(list[str]):
    """Folders of a package, which is loaded as soon as a module below it is looked for."""

    def __init__(self, real: Callable[[], ModuleType]) -> None:
        super().__init__()
        self._real = real

    def __iter__(self) -> Iterator[str]:
        return iter(self._real().__path__)

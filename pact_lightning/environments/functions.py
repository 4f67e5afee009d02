"""Plain Python functions as tools."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pact_lightning.environments.callable_tools import CallableTools
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.import_path import import_module, import_path
from pact_lightning.tasks.prompt import PromptView, ToolSchema


class FunctionEnvironment:
    """Typed functions with Google docstrings, sync or async, each of which becomes a tool of its name.

    Arguments are checked against the schema before a function is called; what is wrong comes back as an error that the
    policy can read. A function gets the JSON values as they are: the value of an enum's member, a list for a tuple.
    What it returns becomes text by :func:`pact_lightning.environments.tool_output.output_text`; an exception becomes
    an error response. Functions hold no state of a rollout: one that keeps something between calls is shared by all
    rollouts, and may be called from several threads at the same time. Where there is a state, write a class.

    Args:
        functions: Import paths of the functions, or the functions themselves; or, as one string, the import path of a
            module, whose public functions become tools in the order in which they stand there.

    Raises:
        ImportError: A path names nothing, or no function.
        FunctionSchemaError: A function cannot become a tool; the sentence says what to add.
    """

    def __init__(self, functions: str | Sequence[str | Callable[..., Any]]) -> None:
        if isinstance(functions, str):
            found = _module_functions(functions)
        else:
            found = [_imported_function(entry) if isinstance(entry, str) else entry for entry in functions]
        self._tools = CallableTools(found)

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """The functions' schemas in OpenAI format."""
        return self._tools.schemas

    def reset(self, task: PromptView, seed: int) -> None:
        """Nothing to do: functions hold no state of a rollout."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one function; see :meth:`pact_lightning.environments.callable_tools.CallableTools.call`."""
        return self._tools.call(name, arguments)

    def close(self) -> None:
        """Ends what async functions have left running."""
        self._tools.close()


def _module_functions(path: str) -> list[Callable[..., Any]]:
    module = import_module(path)
    found: list[Callable[..., Any]] = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not found:
        raise ImportError(f"the module {path!r} defines no public function; give the functions' import paths as a list")
    return found


def _imported_function(path: str) -> Callable[..., Any]:
    function: Callable[..., Any] = import_path(path, "function")
    if not inspect.isroutine(function):
        raise ImportError(f"{path!r} is no function; `functions` takes import paths of functions, or one of a module")
    return function

"""Calls Python callables as tools: arguments checked, results as text, exceptions as observations.

Plain Python functions as tools.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pact_lightning.environments.function_schema import (
    FunctionSchemaError,
    argument_problem,
    arguments_validator,
    function_schema,
)
from pact_lightning.environments.protocol import EnvironmentUnavailableError, ToolResult
from pact_lightning.environments.tool_output import ToolOutputError, failure_text, is_unreachable, output_text
from pact_lightning.types.prompt import PromptView, ToolSchema
from pact_lightning.utils.imports import import_module, import_path


class CallableTools:
    """A set of functions or bound methods that answer calls.

    Coroutines run on an event loop that belongs to this set and lives until :meth:`close`, so that what a tool keeps
    between its calls (a client, a lock) finds its own loop again, whichever thread a call comes from.

    Args:
        functions: The tools, by their name's order in the prompt.

    Raises:
        FunctionSchemaError: There is none, two have one name, or one cannot become a tool.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        self.schemas: list[ToolSchema] = []
        for function in functions:
            schema = function_schema(function)
            name = schema["function"]["name"]
            if name in self._functions:
                raise FunctionSchemaError(f"two tools are named {name!r}; rename one of the functions")
            self._functions[name] = function
            self.schemas.append(schema)
        if not self._functions:
            raise FunctionSchemaError("there are no functions that could become tools")
        self._validators = {schema["function"]["name"]: arguments_validator(schema) for schema in self.schemas}
        self._runner: asyncio.Runner | None = None

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one tool.

        Args:
            name: The tool.
            arguments: Its arguments by name, as JSON values.

        Returns:
            The observation; ``error`` is set for an unknown tool, wrong arguments, an exception, or a result without
            a text.

        Raises:
            EnvironmentUnavailableError: The function itself says that the run has to stop.
        """
        if name not in self._functions:
            known = ", ".join(self._functions)
            return ToolResult(f"There is no tool named {name!r}. The tools are: {known}.", error=True)
        problem = argument_problem(self._validators[name], name, arguments)
        if problem is not None:
            return ToolResult(problem, error=True)
        try:
            return ToolResult(output_text(self.finish(self._functions[name](**arguments))))
        except ToolOutputError as error:
            return ToolResult(f"The tool {name} failed: {error}.", error=True)
        except EnvironmentUnavailableError:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the user's code: whatever it raises is its observation
            return ToolResult(failure_text(error), error=True, unanswered=is_unreachable(error))

    def finish(self, value: Any) -> Any:
        """Waits for an awaitable on this set's loop; gives any other value back."""
        if not inspect.isawaitable(value):
            return value
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_awaited(value))

    def close(self) -> None:
        """Ends the event loop and what still runs on it, a call in another thread that was given up included."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        loop = runner.get_loop()
        if loop.is_running():
            loop.call_soon_threadsafe(_cancel_all, loop)
        else:
            runner.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _awaited(value: Any) -> Any:
    return await value


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
        """Runs one function; see :meth:`pact_lightning.CallableTools.call`."""
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

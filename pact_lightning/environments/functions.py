"""Python functions as tools: arguments are checked, results become text, exceptions become observations."""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from pact_lightning.environments.argument_types import argument_types, converted
from pact_lightning.environments.function_schema import (
    FunctionSchemaError,
    argument_problem,
    arguments_validator,
    function_schema,
    without_set_arguments,
)
from pact_lightning.environments.protocol import ToolResult, unknown_tool
from pact_lightning.environments.tool_calls import failure
from pact_lightning.environments.tool_output import ToolOutputError, output_text
from pact_lightning.types.prompt import PromptView, ToolSchema
from pact_lightning.utils.errors import FAILURES
from pact_lightning.utils.imports import import_module, import_path


class CallableTools:
    """Functions or bound methods that answer calls.

    Coroutines run on one event loop, which lives until :meth:`close`. A client or a lock that a tool keeps between
    calls meets the same loop, whichever thread a call comes from.

    Args:
        functions: The tools, in their order in the prompt; a ``functools.partial`` without the arguments it sets.

    Raises:
        FunctionSchemaError: There are no functions, two have the same name, or one cannot become a tool.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        self.schemas: list[ToolSchema] = []
        for function in map(without_set_arguments, functions):
            schema = function_schema(function)
            name = schema["function"]["name"]
            if name in self._functions:
                raise FunctionSchemaError(f"two tools are named {name!r}; rename one of the functions")
            self._functions[name] = function
            self.schemas.append(schema)
        if not self._functions:
            raise FunctionSchemaError("there are no functions to use as tools")
        self._validators = {schema["function"]["name"]: arguments_validator(schema) for schema in self.schemas}
        self._types = {name: argument_types(function) for name, function in self._functions.items()}
        self._runner: asyncio.Runner | None = None

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool.

        Args:
            name: The tool.
            arguments: The call's arguments by name, as JSON values.

        Returns:
            The observation; ``error`` is set for an unknown tool, wrong arguments, an exception, or a result without
            a text.

        Raises:
            EnvironmentUnavailableError: The function raised it to stop the run.
        """
        if name not in self._functions:
            return unknown_tool(name, self._functions)
        problem = argument_problem(self._validators[name], name, arguments)
        if problem is not None:
            return ToolResult(problem, error=True)
        try:
            given, problem = converted(self._types[name], arguments)
            if problem is not None:
                return ToolResult(problem, error=True)
            return ToolResult(output_text(self.finish(self._functions[name](**given))))
        except ToolOutputError as error:
            return ToolResult(f"The tool {name} failed: {error}.", error=True)
        except (*FAILURES, asyncio.CancelledError) as error:  # the user's code: any error is an observation
            return failure(error)

    def finish(self, value: Any) -> Any:
        """Wait for an awaitable on the event loop; return any other value as it is."""
        if not inspect.isawaitable(value):
            return value
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_awaited(value))

    def close(self) -> None:
        """End the event loop and all that still runs on it, including an abandoned call in another thread."""
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
    """Environment whose tools are typed functions with Google docstrings, sync or async.

    Arguments are checked against the schema before a function is called; mistakes come back as an error that the policy
    can read. A function gets what its type hints say: a member for an enum, a tuple for a tuple. Its result becomes
    text by :func:`~pact_lightning.environments.tool_output.output_text`; an exception becomes an error
    response. All rollouts share the functions, which may be called from several threads at once. Tools with state per
    rollout need an environment class.

    Args:
        functions: Functions or their import paths; or, as one string, the import path of a module, whose public
            functions become tools in the module's order.

    Raises:
        ImportError: A path names nothing, or no function.
        FunctionSchemaError: A function cannot become a tool; the sentence says how to mend that.
    """

    def __init__(self, functions: str | Sequence[str | Callable[..., Any]]) -> None:
        if isinstance(functions, str):
            found = _module_functions(functions)
        else:
            found = [_imported_function(entry) if isinstance(entry, str) else entry for entry in functions]
        self._tools = CallableTools(found)

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of the functions in OpenAI format."""
        return self._tools.schemas

    def reset(self, task: PromptView, seed: int) -> None:
        """Do nothing: functions have no state of a rollout."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one function; see :meth:`CallableTools.call`."""
        return self._tools.call(name, arguments)

    def close(self) -> None:
        """End what async functions have left running."""
        self._tools.close()


def _module_functions(path: str) -> list[Callable[..., Any]]:
    module = import_module(path)
    found: list[Callable[..., Any]] = [
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_function(value) and value.__module__ == module.__name__
    ]
    if not found:
        raise ImportError(f"the module {path!r} defines no public function; give the functions' import paths as a list")
    return found


def _is_function(value: Any) -> bool:
    """Return whether a value is a Python function, also under a decorator such as ``functools.cache``."""
    return inspect.isroutine(value) and inspect.isfunction(inspect.unwrap(value))


def _imported_function(path: str) -> Callable[..., Any]:
    if path.isidentifier() and path != "__main__" and find_spec(path) is not None:
        raise ImportError(f"{path!r} is a module; give it alone (functions: {path}), or the paths of its functions")
    function: Callable[..., Any] = import_path(path, "function")
    if not inspect.isroutine(function.func if isinstance(function, partial) else function):
        raise ImportError(
            f"{path!r} is not a function; `functions` takes import paths of functions, or the import path of a module"
        )
    return function

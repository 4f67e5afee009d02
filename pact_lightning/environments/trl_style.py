"""Adapter for environment classes in TRL's style: `reset(**row)`, public methods as tools, optional `get_reward()`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pact_lightning.environments.functions import CallableTools
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.types.prompt import PromptView, ToolSchema
from pact_lightning.utils.errors import plain_text, shortened
from pact_lightning.utils.imports import import_path

_VERBS = ("reset", "get_reward")


class TRLEnvironment:
    """Environment around an object that TRL's ``environment_factory`` makes; its class needs no change.

    - Every public method that the class defines with ``def`` or ``async def`` is a tool, in alphabetical order, except
      ``reset`` and ``get_reward``. Its schema comes from its type hints and its docstring [C].
    - ``reset`` gets the row as keyword arguments. The text that it returns, if any, is the end of the last user
      message; :class:`pact_lightning.TRLRowTasks` puts it there when it loads the rows.
    - ``get_reward``, sync or async, is the environment's own reward: ``data.credit.reward: environment``.

    TRL converts a result by ``str``, and a dictionary reads like Python; here it becomes JSON [D].

    Args:
        class_path: Import path of the class, or of a function without arguments that makes an object of it.
        init_args: Constructor arguments of the class; TRL gives none.
        row: The task's row of the data set.

    Raises:
        ImportError: The path names nothing that can be called.
        ValueError: The object has no ``reset``, or a method cannot become a tool.
    """

    reward: Callable[[], float]

    def __init__(
        self,
        class_path: str,
        init_args: Mapping[str, Any] | None = None,
        row: Mapping[str, Any] | None = None,
    ) -> None:
        self._row = dict(row or {})
        self._object = _made(class_path, dict(init_args or {}))
        if not callable(getattr(self._object, "reset", None)):
            raise ValueError(f"{class_path} has no method `reset`; TRL and this adapter begin every rollout with it")
        self._tools = CallableTools(tool_methods(self._object))
        if callable(getattr(self._object, "get_reward", None)):
            self.reward = self._reward

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of the methods in OpenAI format."""
        return self._tools.schemas

    def observe(self, row: Mapping[str, Any]) -> str:
        """Reset the object for a row.

        Args:
            row: Fields of the row.

        Returns:
            Text that ``reset`` adds to the prompt; empty for ``None``.

        Raises:
            TypeError: ``reset`` returned neither, but for example the list of content parts that TRL takes for images.
        """
        observation = self._tools.finish(self._object.reset(**row))
        if observation is not None and not isinstance(observation, str):
            kind = type(observation).__name__
            raise TypeError(f"reset() must return a text or None, not a {kind}; images are not supported")
        return plain_text(observation or "")

    def reset(self, task: PromptView, seed: int) -> None:
        """Reset the object for this task's row.

        Args:
            task: The task. Its last user message must be empty or end with the text of the object's ``reset``.
            seed: Not used: TRL's ``reset`` has no seed. A class that draws at random must take its seed from the row.

        Raises:
            ValueError: The object's ``reset`` returned a text that the prompt does not end with.
        """
        del seed
        observation = self.observe(self._row)
        prompt = str(task.messages[-1]["content"])
        if prompt and not prompt.endswith(observation):
            raise ValueError(
                f"reset() returned {shortened(observation)}, and the task's user message does not end with it; make "
                "the tasks with pact_lightning.TRLRowTasks, and let reset() depend on the row alone"
            )

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one method; see :meth:`~pact_lightning.environments.functions.CallableTools.call`."""
        return self._tools.call(name, arguments)

    def close(self) -> None:
        """End what async methods have left running."""
        self._tools.close()

    def _reward(self) -> float:
        return float(self._tools.finish(self._object.get_reward()))


def tool_methods(environment: object) -> list[Callable[..., Any]]:
    """Collect the methods that TRL takes as tools: public functions of the class that are no verb, by name [C]."""
    return [
        getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
        if name not in _VERBS and not name.startswith("_")
    ]


def _made(class_path: str, init_args: Mapping[str, Any]) -> Any:
    factory = import_path(class_path, "environment class")
    if inspect.isclass(factory):
        if not callable(getattr(factory, "reset", None)):
            raise ValueError(f"{class_path} has no method `reset`; TRL and this adapter begin every rollout with it")
        return factory(**init_args)
    # A task file can name this path: it must not reach `os.system`, or another function with an argument.
    if not inspect.isfunction(factory) or init_args or inspect.signature(factory).parameters:
        raise ImportError(
            f"{class_path!r} is neither a class nor a Python function without arguments that makes an environment"
        )
    return factory()

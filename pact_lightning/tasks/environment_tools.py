"""An environment's own tools, for tasks that do not list theirs."""

import json
from collections.abc import Mapping

from pact_lightning.environments.protocol import close_environment
from pact_lightning.tasks.checks import TaskFieldError
from pact_lightning.tasks.prompt import EnvironmentSpec, ToolSchema


class EnvironmentTools:
    """Asks environments for their tools, each of them once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ToolSchema, ...]] = {}

    def of(self, spec: EnvironmentSpec) -> tuple[ToolSchema, ...]:
        """The tools of the environment as it is made, before any reset.

        Args:
            spec: The environment.

        Raises:
            TaskFieldError: It cannot be made, or cannot give its tools.
        """
        key = f"{spec.class_path} {json.dumps(spec.init_args, sort_keys=True, default=repr)}"
        if key not in self._known:
            self._known[key] = _asked(spec)
        return self._known[key]


def _asked(spec: EnvironmentSpec) -> tuple[ToolSchema, ...]:
    try:
        environment = spec.build()
        try:
            tools = tuple(environment.tools)
        finally:
            close_environment(environment)
    except Exception as error:  # the user's code: any failure is this field's
        problem = f"is left out, and {spec.class_path} cannot give its own tools: {error or type(error).__name__}"
        raise TaskFieldError("tools", problem) from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        problem = f"is left out, and the `tools` of {spec.class_path} are not a list of schemas in OpenAI format"
        raise TaskFieldError("tools", problem)
    return tools

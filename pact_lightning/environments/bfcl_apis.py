"""BFCL's simulated APIs at work: instances of one scenario, and calls that run on them without ``eval``."""

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pact_lightning.environments.bfcl_cost import affordable
from pact_lightning.environments.bfcl_package import STATELESS, api_class
from pact_lightning.environments.bfcl_schemas import tool_schemas
from pact_lightning.environments.protocol import ToolResult

# The APIs keep a few things in their modules (mpmath's precision, a weather report that is changed and handed out), so
# calls of several rollouts must not run at the same time. They take microseconds.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where a task starts.

    Attributes:
        involved_classes: Names of the simulated APIs, in order.
        initial_config: The state that each API loads, by name; an API without one starts with its own default.
        long_context: Whether the APIs add the unneeded data of the ``long_context`` category.
    """

    involved_classes: Sequence[str]
    initial_config: Mapping[str, Any]
    long_context: bool = False


class SimulatedAPIs:
    """Fresh instances of a scenario's APIs.

    Args:
        scenario: The scenario; it is copied, never changed.

    Raises:
        ValueError: There is no such API, or its initial state cannot be loaded.
        ImportError: ``bfcl-eval`` is not installed.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._instances = {name: _instance(name, scenario) for name in scenario.involved_classes}
        self._owners = {
            str(tool["function"]["name"]): instance
            for name, instance in self._instances.items()
            for tool in tool_schemas([name])
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one function.

        The text is the one that BFCL itself shows a model: an object as JSON, anything else as Python writes it, an
        exception as ``Error during execution: ...``. A result that is an object with an ``error`` counts as an error.
        """
        owner = self._owners.get(name)
        if owner is None:
            return ToolResult(f"Error during execution: name {name!r} is not defined", error=True)
        with _ONE_AT_A_TIME:
            try:
                # Some functions keep a list that they are given and add to it later; the caller's must stay as it is.
                result = getattr(owner, name)(**copy.deepcopy(dict(affordable(name, arguments))))
                failed = isinstance(result, dict) and "error" in result
                return ToolResult(_text(result), error=failed)
            except Exception as error:  # noqa: BLE001  # any failure of a simulated API is an observation
                return ToolResult(f"Error during execution: {error}", error=True)

    def differing(self, other: "SimulatedAPIs") -> list[str]:
        """Names of the APIs whose public state is not that of ``other``, which has the same APIs."""
        return [name for name, instance in self._instances.items() if not _same_state(instance, other._instances[name])]


def _instance(name: str, scenario: Scenario) -> Any:
    instance = api_class(name)()
    if name in STATELESS:
        return instance
    config = copy.deepcopy(scenario.initial_config.get(name, {}))
    try:
        instance._load_scenario(config, long_context=scenario.long_context)
    except Exception as error:  # a scenario's state is data: whatever is wrong with it is told
        raise ValueError(f"{name} cannot load its initial state: {type(error).__name__}: {error}") from error
    # The long-context data is handed out by reference; without a copy one rollout would change it for all others.
    return copy.deepcopy(instance)


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):  # a number of another kind, or one with thousands of digits
            return str(result)
    return str(result)


def _same_state(instance: Any, wanted: Any) -> bool:
    """Whether all public attributes of ``wanted`` are equal; directories that hold themselves are equal to none."""
    try:
        return all(
            hasattr(instance, name) and bool(getattr(instance, name) == value)
            for name, value in vars(wanted).items()
            if not name.startswith("_")
        )
    except RecursionError:
        return False

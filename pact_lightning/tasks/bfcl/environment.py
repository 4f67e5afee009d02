"""Environment of BFCL's multi-turn tasks: fresh instances of its simulated APIs, called without ``eval``.

Calls of the calculator that would take hours and all memory are refused by :func:`affordable`: Python's big numbers
cannot be interrupted, so the engine's time limit is of no help.
"""

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.bfcl.package import STATELESS, api_class, check_classes, data_folder, tool_schemas
from pact_lightning.types.prompt import PromptView, ToolSchema

MAX_PRECISION = 10_000
"""Digits that ``logarithm`` and ``square_root`` may be asked for [D]; BFCL itself has no bound."""
_MAX_BITS = 20_000
"""Above this, a whole number has more digits than Python writes out (4,300), so that the call fails in any case."""


def affordable(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call, unless it is one that would not come back.

    Args:
        name: The function.
        arguments: Its arguments.

    Returns:
        The arguments; a number of decimal places far below zero is raised to one that gives the same result, 0.

    Raises:
        ValueError: The call is too costly; the message is the one that BFCL gives after it has done the work, or, for
            a precision over :data:`MAX_PRECISION`, one of our own.
    """
    if name == "power":
        _check_power(arguments.get("base"), arguments.get("exponent"))
    elif name in ("logarithm", "square_root"):
        precision = arguments.get("precision")
        if isinstance(precision, int | float) and precision > MAX_PRECISION:
            raise ValueError(f"precision must be at most {MAX_PRECISION}")
    elif name == "round_number" and isinstance(places := arguments.get("decimal_places"), int):
        return {**arguments, "decimal_places": max(places, -_MAX_BITS)}
    return arguments


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > _MAX_BITS:
        raise ValueError(
            "Exceeds the limit (4300 digits) for integer string conversion; "
            "use sys.set_int_max_str_digits() to increase the limit"
        )


# The APIs keep a few things in their modules (mpmath's precision, a weather report that is changed and handed out), so
# calls of several rollouts must not run at the same time. They take microseconds.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Start of a task.

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
        """Run one function.

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
        """Return the names of the APIs whose public state is not that of ``other``, which has the same APIs."""
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
    """Compare all public attributes of ``wanted``; directories that hold themselves are equal to none."""
    try:
        return all(
            hasattr(instance, name) and bool(getattr(instance, name) == value)
            for name, value in vars(wanted).items()
            if not name.startswith("_")
        )
    except RecursionError:
        return False


class BFCLEnvironment:
    """BFCL's simulated APIs, with fresh instances for every rollout. Deterministic; nothing is ever evaluated as code.

    One function looks at today's date: ``verify_traveler_information`` refuses travellers under 18.

    Args:
        involved_classes: Names of the simulated APIs.
        initial_config: The state that each API loads, by name.
        long_context: Whether the APIs add the unneeded data of the ``long_context`` category.

    Raises:
        ValueError: There is no such API.
        ImportError: ``bfcl-eval`` is not installed.
    """

    def __init__(
        self,
        involved_classes: Sequence[str],
        initial_config: Mapping[str, Any] | None = None,
        long_context: bool = False,
    ) -> None:
        data_folder()
        check_classes(involved_classes)
        self._scenario = Scenario(tuple(involved_classes), dict(initial_config or {}), long_context)
        self._apis: SimulatedAPIs | None = None

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Every function of the APIs; a task may hold some of them back for a later user turn."""
        return tool_schemas(self._scenario.involved_classes)

    def reset(self, task: PromptView, seed: int) -> None:
        """Start afresh from the initial state.

        Args:
            task: Without influence: the scenario came with the constructor.
            seed: Without influence: the APIs' random numbers are part of their scenario.

        Raises:
            ValueError: An API cannot load its initial state.
        """
        del task, seed
        self._apis = SimulatedAPIs(self._scenario)

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one function; see :meth:`pact_lightning.tasks.bfcl.environment.SimulatedAPIs.call`.

        Raises:
            RuntimeError: It was never reset.
        """
        if self._apis is None:
            raise RuntimeError("call reset() first: the simulated APIs have no state before it")
        return self._apis.call(name, arguments)

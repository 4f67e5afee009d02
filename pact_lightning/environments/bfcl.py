"""The environment of BFCL's multi-turn tasks: its eight simulated APIs."""

from collections.abc import Mapping, Sequence
from typing import Any

from pact_lightning.environments.bfcl_apis import Scenario, SimulatedAPIs
from pact_lightning.environments.bfcl_package import check_classes, data_folder
from pact_lightning.environments.bfcl_schemas import tool_schemas
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.prompt import PromptView, ToolSchema


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
        """Starts afresh from the initial state.

        Args:
            task: Without influence: the scenario came with the constructor.
            seed: Without influence: the APIs' random numbers are part of their scenario.

        Raises:
            ValueError: An API cannot load its initial state.
        """
        del task, seed
        self._apis = SimulatedAPIs(self._scenario)

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one function; see :meth:`pact_lightning.environments.bfcl_apis.SimulatedAPIs.call`.

        Raises:
            RuntimeError: It was never reset.
        """
        if self._apis is None:
            raise RuntimeError("call reset() first: the simulated APIs have no state before it")
        return self._apis.call(name, arguments)

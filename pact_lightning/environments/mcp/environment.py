"""Environment whose tools are those of an MCP server."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pact_lightning.environments.mcp.connection import MCPConnection, MCPLimits
from pact_lightning.environments.mcp.server import (
    ROLLOUT,
    MCPServerError,
    MCPServerSpec,
    in_rollout,
    taken_by,
    tool_schemas,
)
from pact_lightning.environments.protocol import ToolResult, unknown_tool
from pact_lightning.types.prompt import PromptView, ToolSchema

Session = Literal["per_rollout", "shared"]

_shared: dict[str, MCPConnection] = {}


class MCPEnvironment:
    """Tools of a server that is started as a program, reached over streamable HTTP, or made in this process.

    The server starts when its tools are first asked for or a rollout begins. A call that takes longer than
    ``timeout_s``, or during which the server ends, is an error response. A server that has ended is started again for
    the next call, ``max_restarts`` times a rollout; its memory is lost. A program gets the few environment variables
    that the SDK passes on (``PATH``, ``HOME`` and the like) and those of ``env``, and no others.

    ``{rollout}`` in ``args``, ``env``, ``cwd``, ``url``, ``headers`` and ``fixed_arguments`` is another text in every
    rollout: for a program the path of a fresh, empty folder, which is removed with the session; for an address an id.
    It is for servers that keep their state on disk, or by a key.

    Args:
        command: Program that speaks MCP over its standard streams.
        args: Arguments of the program.
        env: Further environment variables of the program.
        cwd: Folder in which the program starts; ``None`` for the present one.
        url: Address of a server that speaks streamable HTTP, in place of ``command``.
        headers: HTTP headers of every request, such as ``Authorization``.
        server: Import path of an ``MCPServer`` or of a function that makes one, in place of ``command``.
        include: Names of the tools to offer; ``None`` for all.
        fixed_arguments: Arguments that every call gets whose tool takes them. The policy does not see them, and cannot
            set them.
        result_field: Field of the structured results that the policy gets alone, where a result has it: neither the
            other fields nor the texts.
        session: ``per_rollout`` gives each rollout its own session, and with ``command`` its own process: no rollout
            sees what another one did [D]. ``shared`` lets all rollouts of this process use one session. It is faster;
            right for servers whose answers depend on the call alone, wrong for all others.
        timeout_s: Seconds of one call; stay below ``data.limits.tool_timeout_s``, or that limit comes first.
        start_timeout_s: Seconds from the start of the server to its list of tools.
        max_restarts: Restarts of a session within one rollout after its server has ended.
        backoff_s: Seconds before the first restart; doubled before each further one, up to 30.
        max_failures: Failures in a row to reach the server, over all rollouts of this process, that stop the run.
            Failures that overlap in time count as one.

    Raises:
        ValueError: Not exactly one of ``command``, ``url`` and ``server`` is given, a limit makes no sense, or
            ``{rollout}`` stands where all rollouts share a session.
        ImportError: The SDK is missing.
    """

    def __init__(
        self,
        command: str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        *,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        server: str | None = None,
        include: Sequence[str] | None = None,
        fixed_arguments: Mapping[str, Any] | None = None,
        result_field: str | None = None,
        session: Session = "per_rollout",
        timeout_s: float = 20.0,
        start_timeout_s: float = 30.0,
        max_restarts: int = 3,
        backoff_s: float = 0.5,
        max_failures: int = 8,
    ) -> None:
        if session not in ("per_rollout", "shared"):
            raise ValueError(f"session must be per_rollout or shared, got {session!r}")
        self._spec = MCPServerSpec(command, tuple(args), dict(env or {}), cwd, url, dict(headers or {}), server)
        self._limits = MCPLimits(timeout_s, start_timeout_s, max_restarts, backoff_s, max_failures)
        self._include = None if include is None else list(include)
        self._fixed = dict(fixed_arguments or {})
        self._field = result_field
        self._is_shared = session == "shared"
        if self._is_shared and (self._spec.is_per_rollout or ROLLOUT in str(self._fixed)):
            raise ValueError(f"{ROLLOUT} is another one in every rollout, and needs `session: per_rollout`")
        self._connection: MCPConnection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Tools of the server in OpenAI format; the server starts if need be.

        Raises:
            MCPServerError: The server does not start, or its list of tools cannot be used.
        """
        return self._listed()

    @property
    def restarts(self) -> int:
        """Number of restarts of this session's server."""
        return 0 if self._connection is None else self._connection.restarts

    def reset(self, task: PromptView, seed: int) -> None:
        """Open the session; with ``per_rollout`` a new one, unless the present one is unused.

        Args:
            task: Not used.
            seed: Not used: MCP has no seed. A server that draws at random gives other responses each time.

        Raises:
            MCPServerError: The server does not start, or its list of tools cannot be used.
            EnvironmentUnavailableError: It has failed to start too often, over all rollouts.
        """
        if not self._is_shared and self._connection is not None and self._connection.calls:
            self.close()
        del task, seed
        self._connected().renew()
        self._listed()

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool; every failure is an observation.

        Args:
            name: The tool.
            arguments: The call's arguments; the server checks them.
        """
        if self._include is not None and name not in self._include:
            return unknown_tool(name, self._include)
        connection = self._connected()
        if self._fixed:
            try:
                takes = next((taken_by(tool, self._fixed) for tool in connection.tools() if tool.name == name), set())
            except MCPServerError as error:
                return ToolResult(f"{error}.", error=True, unanswered=True)
            fixed = {key: value for key, value in self._fixed.items() if key in takes}
            arguments = {**arguments, **in_rollout(fixed, connection.rollout)}
        return connection.call(name, arguments, self._field)

    def close(self) -> None:
        """End this rollout's session without waiting for its server; a shared session stays open."""
        if self._finalizer is not None:
            self._finalizer()
        self._connection = self._finalizer = None

    def _listed(self) -> list[ToolSchema]:
        try:
            tools = self._connected().tools()
            taken = {name for tool in tools for name in taken_by(tool, self._fixed)}
            if unused := [name for name in self._fixed if name not in taken]:
                raise ValueError(f"none takes the argument {unused[0]!r} of fixed_arguments")
            return tool_schemas(tools, self._include, self._fixed)
        except ValueError as error:
            raise MCPServerError(f"the tools of {self._spec.name} cannot be used: {error}") from error

    def _connected(self) -> MCPConnection:
        if self._connection is None and self._is_shared:
            self._connection = _shared.setdefault(
                f"{self._spec.key} {self._limits}", MCPConnection(self._spec, self._limits)
            )
        elif self._connection is None:
            self._connection = MCPConnection(self._spec, self._limits)
            self._finalizer = weakref.finalize(self, self._connection.stop)
        return self._connection

"""MCP server: its specification, a client of it, its outages, and its tools in this package's types."""

import json
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TextIO

from pact_lightning.environments.mcp.leniency import lenient
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.types.prompt import ToolSchema
from pact_lightning.utils.errors import shortened
from pact_lightning.utils.imports import import_path

if TYPE_CHECKING:
    from mcp import Client

INSTALL = "MCP servers need the official SDK, version 2: pip install 'pact-lightning[mcp]'"
MAX_PAUSE_S = 30.0
ROLLOUT = "{rollout}"
"""Word of ``args``, ``env``, ``cwd``, ``url``, ``headers`` and fixed arguments that is another one in every rollout."""
_CONNECT_S, _READ_S = 30.0, 300.0


class MCPServerError(RuntimeError):
    """Error of a server that does not start, does not answer, or offers tools that no prompt can hold."""


@dataclass(frozen=True, slots=True)
class MCPServerSpec:
    """Specification of one server, by exactly one of ``command``, ``url`` and ``server``.

    The attributes are those of :class:`~pact_lightning.MCPEnvironment`.

    Raises:
        ValueError: None or several of the three are given, or a setting that belongs to another one.
        ImportError: The SDK is missing, or older than version 2.
    """

    command: str | None = None
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("command", "url", "server") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"an MCP server is named by one of command, url and server; {found} is given")
        needs = {"args": "command", "env": "command", "cwd": "command", "headers": "url"}
        for name, owner in needs.items():
            if getattr(self, name) and owner != given[0]:
                raise ValueError(f"`{name}` goes with `{owner}`, and this MCP server is named by `{given[0]}`")
        if self.server is not None and "." not in self.server:
            raise ValueError(f"server must be an import path such as `my_server.server`, got {self.server!r}")
        try:
            from mcp import Client
        except ImportError as error:
            raise ImportError(INSTALL) from error
        del Client

    @property
    def name(self) -> str:
        """Name in messages; without headers and environment, which may hold secrets."""
        return " ".join((self.command, *self.args)) if self.command else str(self.url or self.server)

    @property
    def is_per_rollout(self) -> bool:
        """``True`` if the server is another one in every rollout."""
        return ROLLOUT in str((self.args, self.env, self.cwd, self.url, self.headers))

    def of_rollout(self, value: str) -> "MCPServerSpec":
        """Return the specification with a value in the place of :data:`ROLLOUT`."""
        return replace(
            self,
            args=tuple(in_rollout(argument, value) for argument in self.args),
            env=in_rollout(self.env, value),
            cwd=in_rollout(self.cwd, value),
            url=in_rollout(self.url, value),
            headers=in_rollout(self.headers, value),
        )

    @property
    def key(self) -> str:
        """Text that is equal for equal specs."""
        return json.dumps({name: _sortable(value) for name, value in asdict(self).items()}, sort_keys=True)


def in_rollout(given: Any, value: str) -> Any:
    """Put a value in the place of :data:`ROLLOUT`, in a text or in the texts of an object or a list."""
    if isinstance(given, str):
        return given.replace(ROLLOUT, value)
    if isinstance(given, Mapping):
        return {name: in_rollout(entry, value) for name, entry in given.items()}
    return [in_rollout(entry, value) for entry in given] if isinstance(given, list) else given


def _sortable(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


@asynccontextmanager
async def connected(spec: MCPServerSpec, log: TextIO, on_message: Any) -> "AsyncIterator[Client]":
    """Connect a client to the server while the context is open.

    Args:
        spec: The server.
        log: File for a started program's standard error.
        on_message: The SDK's message handler.

    Raises:
        Exception: Any error of the SDK or of the server's own code.
    """
    from mcp import Client

    async with AsyncExitStack() as stack:
        target: Any
        if spec.command:
            from mcp import StdioServerParameters
            from mcp.client.stdio import stdio_client

            parameters = StdioServerParameters(
                command=spec.command,
                args=list(spec.args),
                env=dict(spec.env),
                cwd=spec.cwd,
                encoding_error_handler="replace",  # else a byte that is no UTF-8 ends the session
            )
            target = lenient(stdio_client(parameters, errlog=log), spec.name)
        elif spec.url:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            http = httpx2.AsyncClient(headers=dict(spec.headers), timeout=httpx2.Timeout(_CONNECT_S, read=_READ_S))
            http = await stack.enter_async_context(http)
            target = lenient(streamable_http_client(spec.url, http_client=http), spec.name)
        else:
            target = _in_process(str(spec.server))
        yield await stack.enter_async_context(Client(target, message_handler=on_message))


def _in_process(path: str) -> Any:
    from mcp.server import Server
    from mcp.server.mcpserver import MCPServer

    try:
        found = import_path(path, "server")
    except ImportError as error:
        raise MCPServerError(str(error)) from error
    made = found if isinstance(found, MCPServer | Server) or not callable(found) else found()
    if not isinstance(made, MCPServer | Server):
        raise MCPServerError(
            f"server {path!r} must be an MCPServer or a function that makes one, not {shortened(made)}"
        )
    return made


class ServerOutage:
    """Count of failures in a row to connect to one server, over all rollouts of this process.

    Failures that overlap in time count as one: a short outage fails for every rollout that starts in it. Not
    thread-safe: it is used on the server's event loop only.

    Args:
        max_failures: Failures in a row that stop the run.
        backoff_s: Pause after the first failure, in seconds; doubled by each further one, up to 30.
    """

    def __init__(self, max_failures: int, backoff_s: float) -> None:
        self._max_failures = max_failures
        self._backoff_s = backoff_s
        self._last = float("-inf")
        self.failures = 0
        self.was_up = False

    def up(self) -> None:
        """Record that the server has been reached."""
        self.was_up = True
        self.failures = 0

    def failed(self, began: float, problem: Exception) -> None:
        """Record a failed connection.

        Args:
            began: Start of the attempt, by ``time.monotonic()``.
            problem: The failure.

        Raises:
            EnvironmentUnavailableError: The server has failed ``max_failures`` times in a row.
        """
        if began >= self._last:
            self._last = time.monotonic()
            self.failures += 1
        if self.failures >= self._max_failures:
            raise EnvironmentUnavailableError(
                f"the MCP server could not be reached {self.failures} times in a row, so the run stops: {problem}"
            ) from problem

    def pause_s(self, restarts: int) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            restarts: Number of times that this connection has been opened again.
        """
        return min(self._backoff_s * 2.0 ** max(restarts, self.failures - 1, 0), MAX_PAUSE_S)


def tool_schemas(
    tools: Sequence[Any], include: Collection[str] | None, fixed: Collection[str] = ()
) -> list[ToolSchema]:
    """Convert a server's tools to OpenAI format.

    Args:
        tools: The server's list of the SDK's ``Tool``.
        include: Names of the tools to keep, in this order; ``None`` for all.
        fixed: Names of arguments that the policy does not give, and does not see.

    Raises:
        ValueError: The server lists a name twice, lists no tool, or lacks one of ``include``.
    """
    schemas: dict[str, ToolSchema] = {}
    for tool in tools:
        if tool.name in schemas:
            raise ValueError(f"it lists two tools named {tool.name!r}, and a call could mean either")
        parameters = _without(tool.input_schema, fixed)
        function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
        schemas[tool.name] = {"type": "function", "function": function}
    absent = [name for name in include or () if name not in schemas]
    if absent:
        raise ValueError(f"it has no tool {absent[0]!r} to include; it has {', '.join(schemas) or 'none'}")
    if not schemas:
        raise ValueError("it lists no tools")
    return [schemas[name] for name in include] if include is not None else list(schemas.values())


def taken_by(tool: Any, fixed: Collection[str]) -> set[str]:
    """Return those of some arguments that one of the SDK's tools takes."""
    return set(fixed) & set(tool.input_schema.get("properties", ()))


def _without(parameters: Mapping[str, Any], fixed: Collection[str]) -> Mapping[str, Any]:
    """Return a tool's schema without some arguments."""
    if not any(name in parameters.get("properties", ()) for name in fixed):
        return parameters
    properties = {name: schema for name, schema in parameters["properties"].items() if name not in fixed}
    required = [name for name in parameters.get("required", ()) if name not in fixed]
    return {**parameters, "properties": properties, "required": required}

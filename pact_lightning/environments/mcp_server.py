"""Which MCP server to use, and how to connect to it."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from pact_lightning.import_path import import_path
from pact_lightning.shortened import shortened

if TYPE_CHECKING:
    from mcp import Client

INSTALL = "MCP servers need the official SDK, version 2: pip install 'pact-lightning[mcp]'"
_CONNECT_S, _READ_S = 30.0, 300.0


class MCPServerError(RuntimeError):
    """A server cannot be used: it does not start, does not answer, or offers tools that no prompt can hold."""


@dataclass(frozen=True, slots=True)
class MCPServerSpec:
    """One server: exactly one of ``command``, ``url`` and ``server`` is given.

    Attributes:
        command: Program that is started and spoken to over its standard streams.
        args: Its arguments.
        env: Environment variables beside the few that the SDK passes on (``PATH``, ``HOME`` and their like).
        cwd: Folder in which it is started; ``None`` for the present one.
        url: Address of a server that speaks streamable HTTP.
        headers: HTTP headers of every request to it.
        server: Import path of an ``MCPServer``, or of a function that makes one.

    Raises:
        ValueError: None or several are given, or a setting that belongs to another kind.
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
        """What it is called in messages; no headers and no environment, which may hold secrets."""
        return " ".join((self.command, *self.args)) if self.command else str(self.url or self.server)

    @property
    def key(self) -> str:
        """Equal for equal specs."""
        return json.dumps({name: _sortable(value) for name, value in asdict(self).items()}, sort_keys=True)


def _sortable(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


@asynccontextmanager
async def connected(spec: MCPServerSpec, log: TextIO, on_message: Any) -> "AsyncIterator[Client]":
    """A client of the server, connected while the context is open.

    Args:
        spec: The server.
        log: Where a started program's standard error goes.
        on_message: The SDK's message handler.

    Raises:
        Exception: Whatever the SDK or the server's own code raises.
    """
    from mcp import Client

    async with AsyncExitStack() as stack:
        target: Any
        if spec.command:
            from mcp import StdioServerParameters
            from mcp.client.stdio import stdio_client

            parameters = StdioServerParameters(
                command=spec.command, args=list(spec.args), env=dict(spec.env), cwd=spec.cwd
            )
            target = stdio_client(parameters, errlog=log)
        elif spec.url:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            http = httpx2.AsyncClient(headers=dict(spec.headers), timeout=httpx2.Timeout(_CONNECT_S, read=_READ_S))
            target = streamable_http_client(spec.url, http_client=await stack.enter_async_context(http))
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

"""Connection to an MCP server from any thread: opened on demand, watched, and opened again."""

import asyncio
import atexit
import logging
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from pact_lightning.environments.mcp.results import tool_result
from pact_lightning.environments.mcp.server import (
    MAX_PAUSE_S,
    MCPServerError,
    MCPServerSpec,
    ServerOutage,
    connected,
)
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.tool_output import ToolOutputError
from pact_lightning.utils.errors import failure_reason

if TYPE_CHECKING:
    from mcp import Client

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CONNECTION_CLOSED, _REQUEST_TIMEOUT = -32000, -32001
_INTERNAL_ERROR, _PARSE_ERROR = -32603, -32700
_PROBE_S = 5.0
_SLACK_S = 1.0
_EXIT_S = 5.0
_MAX_PAGES = 100
_STDERR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class MCPLimits:
    """Time limits of a server and limits on its restarts.

    Attributes:
        timeout_s: Seconds of one call.
        start_timeout_s: Seconds from the start of a server to its list of tools.
        max_restarts: Restarts of a connection within one rollout after its server has ended.
        backoff_s: Seconds before the first restart; doubled before each further one, up to 30.
        max_failures: Failures in a row to connect, over all rollouts of this process, that stop the run.
    """

    timeout_s: float = 20.0
    start_timeout_s: float = 30.0
    max_restarts: int = 3
    backoff_s: float = 0.5
    max_failures: int = 8

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.start_timeout_s <= 0 or self.max_restarts < 0 or self.backoff_s < 0:
            raise ValueError("timeout_s and start_timeout_s must be above 0, max_restarts and backoff_s not below 0")
        if self.max_failures < 1:
            raise ValueError(f"max_failures must be at least 1, got {self.max_failures}")


class MCPConnection:
    """Session with a server. Its coroutines run on one event loop; its public methods may be called on any thread.

    Args:
        spec: The server.
        limits: Its limits.

    Attributes:
        rollout: What stands for ``{rollout}``: a fresh folder of a program, which ends with the connection, or an id.
    """

    def __init__(self, spec: MCPServerSpec, limits: MCPLimits) -> None:
        self.spec = spec
        self._folder = None
        self.rollout = uuid.uuid4().hex
        if spec.command and spec.is_per_rollout:
            self._folder = tempfile.TemporaryDirectory(prefix="pact-rollout-", ignore_cleanup_errors=True)
            self.rollout = self._folder.name
        self._ending: asyncio.Task[None] | None = None
        self.limits = limits
        self.restarts = 0
        self._spent = 0  # restarts since the last renewal
        self.garbage = 0
        self.calls = 0
        # A tool that blocks the loop of servers in this process must not block the clients of the others.
        self._loop = _event_loop("mcp servers in process" if spec.server else "mcp clients")
        self._outage = _outages.setdefault(f"{spec.key} {limits}", ServerOutage(limits.max_failures, limits.backoff_s))
        self._opening = asyncio.Lock()
        self._attempts = 0
        self._client: Client | None = None
        self._suspect: Client | None = None
        self._tools: list[Any] = []
        self._stop = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        _live.add(self)

    def tools(self) -> list[Any]:
        """Return the tools that the server lists; open the connection.

        Raises:
            MCPServerError: The server does not start, does not answer, or has ended too often.
            EnvironmentUnavailableError: It has failed to start too often, over all rollouts.
        """
        return self._wait(self._listed(), self._open_s() * (1 + self.limits.max_restarts))

    def call(self, name: str, arguments: Mapping[str, Any], field: str | None = None) -> ToolResult:
        """Run one tool; every failure is an observation.

        Args:
            name: The tool.
            arguments: Its arguments.
            field: Field of the structured result to give alone.

        Raises:
            EnvironmentUnavailableError: The server has failed to start too often, over all rollouts.
        """
        self.calls += 1
        open_s = 0.0 if self._client is not None and self._suspect is None else self._open_s()
        try:
            return self._wait(self._call(name, arguments, field), open_s + self.limits.timeout_s + _SLACK_S)
        except MCPServerError as error:
            return ToolResult(f"{error}.", error=True, unanswered=True)
        except ToolOutputError as error:
            return ToolResult(f"The tool {name} failed: {error}.", error=True)

    def renew(self) -> None:
        """Allow ``max_restarts`` restarts once more, for a new rollout."""
        self._spent = 0

    def stop(self) -> None:
        """End the session, and a started program with it, without waiting."""
        self._loop.call_soon_threadsafe(self._end)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the session has closed; return ``False`` if it has not within ``timeout_s`` seconds."""
        try:
            asyncio.run_coroutine_threadsafe(self._ended(), self._loop).result(timeout_s)
        except FutureTimeoutError:
            return False
        return True

    def _open_s(self) -> float:
        """Return the most seconds that opening may take."""
        return _PROBE_S + MAX_PAUSE_S + self.limits.start_timeout_s + _SLACK_S

    def _wait(self, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except (FutureTimeoutError, CancelledError) as error:
            future.cancel()
            raise MCPServerError(f"The tool server did not answer within {timeout_s:g} seconds") from error

    def _timeout_text(self) -> str:
        return f"The tool server did not answer within {self.limits.timeout_s:g} seconds"

    # What follows runs on the loop.

    async def _listed(self) -> list[Any]:
        await self._ready()
        return self._tools

    async def _ready(self) -> "Client":
        """Return the client; open it, again if need be.

        Raises:
            MCPServerError: It cannot be opened.
        """
        async with self._opening:
            if self._client is not None and self._client is self._suspect:
                await self._probe(self._client)
            if self._client is None:
                await (self._open_again() if self._attempts else self._open_first())
            assert self._client is not None
            return self._client

    async def _open_first(self) -> None:
        """Open the connection; retry if the server has been up before, for it may come back."""
        try:
            await self._open()
        except MCPServerError as error:
            problem = error
        else:
            return
        while self._outage.was_up and self._spent < self.limits.max_restarts:
            try:
                await self._open_again()
            except MCPServerError as error:
                problem = error
            else:
                return
        raise problem

    async def _open_again(self) -> None:
        limit = self.limits.max_restarts
        if self._spent >= limit:
            raise MCPServerError(f"The tool server has ended {self._spent + 1} times and is not started again")
        await asyncio.sleep(self._outage.pause_s(self._spent))
        self._spent += 1
        self.restarts += 1
        _log.warning("%s is started again (%d of %d)", self.spec.name, self._spent, limit)
        try:
            await self._open()
        except MCPServerError as error:
            # The policy reads what is raised here, and must not read the command line.
            _log.warning("%s", error)
            raise MCPServerError("The tool server has ended, and it does not start again") from error

    async def _open(self) -> None:
        """Open the connection and count its failures.

        Raises:
            MCPServerError: It cannot be opened.
            EnvironmentUnavailableError: It has failed to open too often.
        """
        began = time.monotonic()
        try:
            await self._try()
        except MCPServerError as error:
            self._outage.failed(began, error)
            raise
        self._outage.up()

    async def _try(self) -> None:
        self._attempts += 1
        self._stop = asyncio.Event()
        started: asyncio.Future[tuple[Client, list[Any]]] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(started, self._stop))
        try:
            self._client, self._tools = await asyncio.wait_for(started, self.limits.start_timeout_s)
        except TimeoutError as error:
            self._owner.cancel()
            limit = f"{self.limits.start_timeout_s:g} seconds"
            raise MCPServerError(f"{self.spec.name} did not start within {limit} (start_timeout_s)") from error

    async def _own(self, started: "asyncio.Future[tuple[Client, list[Any]]]", stop: asyncio.Event) -> None:
        """Keep the client open until it is stopped; the SDK requires one task to open and close it."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            try:
                async with connected(self.spec.of_rollout(self.rollout), log, self._on_message) as client:
                    tools = await _all_tools(client)
                    if not started.done():
                        started.set_result((client, tools))
                    await stop.wait()
            except Exception as error:  # noqa: BLE001  # of the SDK or of the server's own code: told in one sentence
                if started.done():
                    _log.debug("closing %s: %r", self.spec.name, error)
                else:
                    problem = " ".join(failure_reason(_innermost(error)).split())
                    started.set_exception(MCPServerError(f"{self.spec.name} does not start: {problem}{_tail(log)}"))

    async def _call(self, name: str, arguments: Mapping[str, Any], field: str | None) -> ToolResult:
        client = await self._ready()
        # A task of its own: a server in this process may ignore its cancellation, and is given up.
        work = asyncio.create_task(client.call_tool(name, dict(arguments), read_timeout_seconds=self.limits.timeout_s))
        done, _ = await asyncio.wait({work}, timeout=self.limits.timeout_s + _SLACK_S / 2)
        if not done:
            work.cancel()
            self._suspect = client
            raise MCPServerError(self._timeout_text())
        error = work.exception()
        if error is None:
            return tool_result(work.result(), field)
        return self._failed(client, error)

    def _failed(self, client: "Client", error: BaseException) -> ToolResult:
        from mcp import MCPError

        code = error.code if isinstance(error, MCPError) else None
        if code == _REQUEST_TIMEOUT:
            self._suspect = client
            raise MCPServerError(self._timeout_text()) from error
        if code == _CONNECTION_CLOSED or isinstance(error, OSError) or _is_transport_error(error):
            if self._client is client:
                self._drop()
            raise MCPServerError("The tool server ended during the call, and what it kept is lost") from error
        # The SDK gives HTTP's errors the code of an internal error; without a code the answer broke the protocol.
        nobody = code in (None, _INTERNAL_ERROR, _PARSE_ERROR)
        return ToolResult(f"The tool failed: {failure_reason(error)}", error=True, unanswered=nobody)

    async def _probe(self, client: "Client") -> None:
        """Drop a client whose last call ran into the limit, unless the server still lists its tools."""
        self._suspect = None
        asked = asyncio.create_task(client.list_tools(cache_mode="bypass"))
        done, _ = await asyncio.wait({asked}, timeout=_PROBE_S)
        if not done or asked.exception() is not None:
            asked.cancel()
            self._drop()

    def _drop(self) -> None:
        self._client = self._suspect = None
        self._stop.set()

    def _end(self) -> None:
        self._drop()
        self._ending = asyncio.create_task(self._ended())

    async def _ended(self) -> None:
        if self._owner is not None:
            await asyncio.wait({self._owner})
        if self._folder is not None:
            self._folder.cleanup()  # on this thread: when the process ends, no other one can be started

    async def _on_message(self, message: Any) -> None:
        """Count the lines on a server's standard output that are not of the protocol; warn of the first."""
        if isinstance(message, Exception):
            self.garbage += 1
            if self.garbage == 1:
                _log.warning(
                    "%s writes lines to its standard output that are no MCP messages; they are left out. "
                    "Let it print to standard error.",
                    self.spec.name,
                )
        await asyncio.sleep(0)


@cache
def _event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the loop of this name, which runs in a daemon thread until the process ends.

    anyio's blocking portal does not serve: it waits for its loop to take a task, without limit where a tool blocks the
    loop, and refuses a session that the garbage collector ends on the loop's own thread.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run_on, args=(loop,), name=name, daemon=True).start()
    return loop


def _run_on(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for ever; asyncio lets the ``sys.exit()`` of a server in this process end it."""
    while True:
        with suppress(SystemExit):
            loop.run_forever()


_outages: dict[str, ServerOutage] = {}
_live: "weakref.WeakSet[MCPConnection]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    connections = list(_live)
    for connection in connections:
        connection.stop()
    for connection in connections:
        connection.wait_ended(_EXIT_S)


async def _all_tools(client: "Client") -> list[Any]:
    """Read every page of the server's list."""
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise MCPServerError(f"its list of tools has more than {_MAX_PAGES} pages")


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _is_transport_error(error: BaseException) -> bool:
    import anyio
    import httpx2

    return isinstance(error, httpx2.TransportError | anyio.ClosedResourceError | anyio.BrokenResourceError)


def _tail(log: TextIO) -> str:
    """Return the last line that a program wrote to its standard error."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return f"; it says: {lines[-1][-_STDERR_CHARACTERS:]}" if lines else ""


def _is_no_unparsed_line(record: logging.LogRecord) -> bool:
    """Drop the traceback that the SDK logs for every line that is no message; `_on_message` warns once instead."""
    return "Failed to parse JSONRPC message" not in record.getMessage()


logging.getLogger("mcp.client.stdio").addFilter(_is_no_unparsed_line)

"""Messages of MCP servers that keep less than the protocol, read before the SDK refuses them.

The SDK checks an answer as a whole: for one tool it refuses a list, and for one field a result whose tool has run. What
is clear all the same is read here [D]: a rollout should not depend on how strict a client is.
"""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any

from pact_lightning.utils.errors import plain_text

_log = logging.getLogger(__name__)

_BLOCKS = {"text", "image", "audio", "resource", "resource_link"}


def read_leniently(result: Any) -> list[str]:
    """Mend the result of a server's answer in place, as far as it is clear what it means.

    Of ``tools/list``: an entry that is no tool is left out; a schema of arguments without ``type``, with a field that
    is ``null``, or with ``true`` for an argument is completed. A tool's ``outputSchema`` is left out, so that a result
    is not refused for it: the policy reads what the server says. Of ``tools/call``: ``null`` flags, missing content
    beside a structured result, a structured result that is no object, and blocks of unknown type.

    Args:
        result: The ``result`` of an answer; whatever it is.

    Returns:
        What was mended, in words; neither an ``outputSchema`` is told nor ``true`` for an argument, which JSON Schema
        allows and the SDK's version 2.0.0 refuses.
    """
    if not isinstance(result, dict) or "protocolVersion" in result:
        return []
    if isinstance(result.get("tools"), list):
        return _mend_list(result)
    return _mend_call(result) if result.keys() & {"content", "structuredContent", "isError"} else []


def _mend_list(result: dict[str, Any]) -> list[str]:
    tools = [tool for tool in result["tools"] if isinstance(tool, dict)]
    told = ["a tool that is no object is left out"] if len(tools) < len(result["tools"]) else []
    result["tools"] = tools
    for tool in tools:
        tool.pop("outputSchema", None)
        schema = tool.get("inputSchema")
        if schema is None:
            schema = tool["inputSchema"] = {}
        if not isinstance(schema, dict):
            continue
        properties = schema.get("properties")
        empty = [name for name in ("properties", "required") if name in schema and schema[name] is None]
        for name in empty:
            del schema[name]
        plain: dict[str, Any] = {}
        if isinstance(properties, dict):
            plain = {
                name: {} if value else {"not": {}} for name, value in properties.items() if isinstance(value, bool)
            }
            properties |= plain
        if empty or "type" not in schema:
            told.append(f"the inputSchema of {tool.get('name')} is completed")
        schema.setdefault("type", "object")
    return told


def _mend_call(result: dict[str, Any]) -> list[str]:
    told = []
    if "isError" in result and result["isError"] is None:
        del result["isError"]
        told.append("isError is null")
    structured = result.get("structuredContent")
    if structured is not None and result.get("content") is None:
        result["content"] = []
        told.append("content is missing")
    if structured is not None and not isinstance(structured, dict):
        result["structuredContent"] = {"result": structured}
        told.append("structuredContent is no object")
    content = result.get("content")
    blocks: list[Any] = content if isinstance(content, list) else []
    for number, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and block.get("text") is None:
            blocks[number] = {"type": "text", "text": ""}
            told.append("a text is null")
        elif isinstance(kind, str) and kind not in _BLOCKS:
            blocks[number] = {"type": "text", "text": f"[{kind}, not shown]"}
            told.append(f"content of the unknown type {kind!r}")
    return told


@asynccontextmanager
async def lenient(transport: AbstractAsyncContextManager[Any], server: str) -> AsyncIterator[tuple[Any, Any]]:
    """Open a transport of the SDK, and read what the server writes by :func:`read_leniently`; told once per kind.

    Args:
        transport: The SDK's transport.
        server: Name of the server, for the log.
    """
    async with transport as (messages, write):
        yield _LenientMessages(messages, server), write


class _LenientMessages:
    """The SDK's stream of a server's messages, with every answer mended on its way."""

    def __init__(self, messages: Any, server: str) -> None:
        self._messages = messages
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)

    async def __aenter__(self) -> "_LenientMessages":
        await self._messages.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._messages.__aexit__(*error)

    def __aiter__(self) -> "_LenientMessages":
        return self

    async def __anext__(self) -> Any:
        return self._mended(await self._messages.__anext__())

    async def receive(self) -> Any:
        return self._mended(await self._messages.receive())

    def _mended(self, item: Any) -> Any:
        item = _read_again(item) if isinstance(item, Exception) else item
        for mended in read_leniently(getattr(getattr(item, "message", None), "result", None)):
            _tell_once(self._server, mended)
        return item


def _read_again(error: Exception) -> Any:
    """Read a line once more whose only mistake is half of a surrogate pair; return the error of any other."""
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return error
    line = error.errors()[0]["input"]
    try:
        text = plain_text(json.dumps(json.loads(line), ensure_ascii=False))
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except (TypeError, ValueError, RecursionError):
        return error


@cache
def _tell_once(server: str, mended: str) -> None:
    _log.warning("%s does not follow MCP: %s; it is accepted anyway, and this warning is shown once", server, mended)

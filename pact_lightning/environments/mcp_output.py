"""MCP's words for tools and results in ours; pure functions that need no server."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.prompt import ToolSchema


def tool_schemas(tools: Sequence[Any], include: Collection[str] | None) -> list[ToolSchema]:
    """The tools of a server in OpenAI format.

    Args:
        tools: What the server lists.
        include: Names of those to keep, in the order of this list; ``None`` for all.

    Raises:
        ValueError: The server lists a name twice, lists no tool, or lacks one of ``include``.
    """
    schemas: dict[str, ToolSchema] = {}
    for tool in tools:
        if tool.name in schemas:
            raise ValueError(f"it lists two tools named {tool.name!r}, and a call could mean either")
        function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        schemas[tool.name] = {"type": "function", "function": function}
    absent = [name for name in include or () if name not in schemas]
    if absent:
        raise ValueError(f"it has no tool {absent[0]!r} to include; it has {', '.join(schemas) or 'none'}")
    if not schemas:
        raise ValueError("it lists no tools")
    return [schemas[name] for name in include] if include is not None else list(schemas.values())


def tool_result(result: Any) -> ToolResult:
    """A server's answer to a call as an observation.

    A structured result is given as JSON; where it is an object of the single field ``result``, which is how servers
    wrap what is no object, that field alone, and a text as it is [D]. Otherwise the texts are joined by line breaks.
    Content that is no text is named, not shown.

    Args:
        result: The SDK's ``CallToolResult``.
    """
    named = [_named(block) for block in result.content if _text_of(block) is None]
    texts = [text for block in result.content if (text := _text_of(block)) is not None]
    if result.structured_content is not None and not result.is_error:
        texts = [_structured_text(result.structured_content)]
    text = "\n".join([*texts, *named])
    if result.is_error and not text:
        text = "The tool failed and did not say why."
    return ToolResult(text, error=bool(result.is_error))


def _structured_text(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"result"}:
        value = value["result"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text_of(block: Any) -> str | None:
    if block.type == "text":
        return str(block.text)
    text = getattr(getattr(block, "resource", None), "text", None)
    return None if text is None else str(text)


def _named(block: Any) -> str:
    resource = getattr(block, "resource", block)
    facts = [getattr(resource, name, None) for name in ("uri", "mime_type")]
    return f"[{' '.join([block.type, *(str(fact) for fact in facts if fact)])}, not shown]"

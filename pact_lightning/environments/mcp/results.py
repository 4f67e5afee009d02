"""Answers of MCP servers as observations: texts, structured results, and pictures that are named and not shown."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.tool_output import output_text
from pact_lightning.utils.json_text import JsonTextError, parse_json

_SHORTEST_DATA = 16  # a shorter text may be a word of its own
_BASE64 = re.compile(r"\\[nr]|[A-Za-z0-9+/_-]")


def tool_result(result: Any, field: str | None = None) -> ToolResult:
    """Convert a server's answer to an observation [D].

    - The texts are joined by line breaks. MCP asks servers with a structured result to give it as a text too: texts
      that repeat it are left out.
    - A structured result follows as JSON, unless it is empty and there is a text. Servers wrap a value that is no
      object in an object of the single field ``result``: then only that field is given, a text as it is.
    - Content that is no text is named, not shown, and so is its base64 wherever a text or the structured result
      repeats it.
    - Of an error the texts alone are given, if there are any.

    Args:
        result: The SDK's ``CallToolResult``.
        field: Field of the structured result to give in place of all of it and of the texts, where it is there; of an
            error too.

    Raises:
        ToolOutputError: The structured result is nested too deeply.
    """
    texts = [text for block in result.content if (text := _text_of(block)) is not None]
    named = [_named(block) for block in result.content if _text_of(block) is None]
    structured = result.structured_content
    if field is not None and isinstance(structured, Mapping) and field in structured:
        texts, structured = [], {"result": structured[field]}
    elif result.is_error and texts:
        structured = None
    lines = _without_repeats(texts, structured)
    if structured is not None and (_unwrapped(structured) not in ({}, [], "", None) or not any(map(str.strip, texts))):
        lines.append(output_text(_unwrapped(structured)))
    text = "\n".join(lines)
    for block in result.content:
        text = _without_data(text, _data_of(block), _named(block))
    text = "\n".join([text, *named] if lines else named)
    if result.is_error and not text:
        text = "The tool failed and did not say why."
    return ToolResult(text, error=bool(result.is_error))


def _unwrapped(structured: Any) -> Any:
    return structured["result"] if isinstance(structured, Mapping) and structured.keys() == {"result"} else structured


def _without_repeats(texts: Sequence[str], structured: Any) -> list[str]:
    """Leave out the texts that repeat a structured result, whole or, of a list, item by item."""
    value = _unwrapped(structured)
    if isinstance(value, list) and len(texts) == len(value) and all(map(_says, texts, value)):
        return []
    if structured is None:
        return list(texts)
    return [text for text in texts if text.strip() and not _says(text, value) and not _says(text, structured)]


def _says(text: str, value: Any) -> bool:
    """Return whether a text is a value, as itself or as JSON."""
    if isinstance(value, str) and text == value:
        return True
    try:
        return json.dumps(parse_json(text), sort_keys=True) == json.dumps(value, sort_keys=True)
    except (JsonTextError, TypeError, ValueError, RecursionError):
        return False


def _text_of(block: Any) -> str | None:
    if block.type == "text":
        return str(block.text)
    text = getattr(getattr(block, "resource", None), "text", None)
    return None if text is None else str(text)


def _named(block: Any) -> str:
    resource = getattr(block, "resource", block)
    facts = [getattr(resource, name, None) for name in ("uri", "mime_type")]
    return f"[{' '.join([block.type, *(str(fact) for fact in facts if fact)])}, not shown]"


def _data_of(block: Any) -> str:
    """Return the base64 of a picture, a sound or a file; empty if there is none."""
    data = getattr(block, "data", None) or getattr(getattr(block, "resource", None), "blob", None) or ""
    return str(data).rpartition("base64,")[2].rstrip("=")


def _without_data(text: str, data: str, name: str) -> str:
    """Put a name in the place of base64, also where it is broken into lines, escaped, or written for addresses."""
    if len(data) < _SHORTEST_DATA:
        return text
    text = re.sub(f"{re.escape(data)}=*", lambda _: name, text)
    if len(text) < len(data):
        return text
    digits = [found for found in _BASE64.finditer(text) if found[0][0] != "\\"]
    squeezed = "".join(found[0] for found in digits).translate(str.maketrans("-_", "+/"))
    core = "".join(_BASE64.findall(data)).translate(str.maketrans("-_", "+/"))
    parts, done, start = [], 0, squeezed.find(core)
    while start >= 0:
        end = start + len(core)
        parts += [text[done : digits[start].start()], name]
        done, start = digits[end - 1].end(), squeezed.find(core, end)
    return "".join(parts) + text[done:].lstrip("=") if parts else text

"""Hints at what a record is that is no task: conversations, tools in other forms, files of another shape."""

from collections.abc import Mapping
from typing import Any

_CONVERSATION = "this looks like a conversation; `pact-lightning traces build` makes a task file with traces of such"
_TOOL = 'a tool is {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}'


def hint(record: Any) -> str:
    """Return what a record probably is and what to do, as the end of a sentence; empty where nothing is known.

    >>> hint({"conversations": [{"from": "human", "value": "Hello"}]})
    '; this looks like a conversation; `pact-lightning traces build` makes a task file with traces of such'
    """
    found = _found(record)
    return f"; {found}" if found else ""


def _found(record: Any) -> str:
    if isinstance(record, list):
        return "JSON Lines has one object a line, and no list around them: `jq -c '.[]' FILE` removes it"
    if not isinstance(record, Mapping):
        return ""
    if isinstance(record.get("conversations"), list) or ("environment" not in record and _has_replies(record)):
        return _CONVERSATION
    messages = record.get("messages")
    if isinstance(messages, list) and any(isinstance(m, Mapping) and "from" in m and "value" in m for m in messages):
        return 'a message is {"role": ..., "content": ...}, not ShareGPT\'s {"from": ..., "value": ...}'
    return _of_tools(record.get("tools"))


def _of_tools(tools: Any) -> str:
    if isinstance(tools, str):
        return "`tools` is JSON inside a string; decode it"
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and "function" not in tool and "name" in tool:
            schema = "input_schema" if "input_schema" in tool else "parameters"
            renamed = "" if schema == "parameters" else f", with `{schema}` as `parameters`"
            return f"{_TOOL}: put the flat {tool['name']!r} inside `function`{renamed}"
    return ""


def _has_replies(record: Mapping[str, Any]) -> bool:
    messages = record.get("messages")
    return isinstance(messages, list) and any(isinstance(m, Mapping) and m.get("role") == "assistant" for m in messages)

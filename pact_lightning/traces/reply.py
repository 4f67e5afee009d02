"""A chat endpoint's reply, read strictly: servers differ in what they leave out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where servers put the thinking that they have parsed out of the text."""


class UnreadableReplyError(Exception):
    """A reply that is no chat completion."""


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A tool call as the protocol gives it.

    Attributes:
        id: Its id; may be empty.
        name: The tool's name.
        arguments: The arguments as JSON text, unread.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One assistant message.

    Attributes:
        text: Its text.
        reasoning: Its thinking, where the server gives it apart from the text.
        reasoning_field: The field that the thinking stood in; empty where there was none.
        calls: Its native tool calls.
        cut: It ended at the token limit.
        prompt_tokens: Tokens read; 0 where the server does not say.
        completion_tokens: Tokens written; 0 where the server does not say.
        counted: Whether the server gave the counts.
    """

    text: str = ""
    reasoning: str = ""
    reasoning_field: str = ""
    calls: tuple[NativeCall, ...] = ()
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = False


def read_reply(body: Any) -> Reply:
    """Reads the body of a chat completion.

    Args:
        body: The JSON value.

    Returns:
        The reply. Half characters (unpaired surrogates), which have no UTF-8, become question marks.

    Raises:
        UnreadableReplyError: It has no message, or one of another shape; the error says what is wrong.
    """
    choices = _get(body, "choices")
    if not isinstance(choices, list) or not choices:
        raise UnreadableReplyError(f"it has no choices, but {str(body)[:120]!r}")
    message = _get(choices[0], "message")
    if not isinstance(message, Mapping):
        raise UnreadableReplyError("its first choice has no message")
    field = next((name for name in _REASONING_FIELDS if isinstance(message.get(name), str) and message[name]), "")
    usage = _get(body, "usage")
    counts = [_get(usage, "prompt_tokens"), _get(usage, "completion_tokens")]
    counted = all(type(count) is int and count >= 0 for count in counts)
    return Reply(
        text=_text(message.get("content")),
        reasoning=_text(message[field]) if field else "",
        reasoning_field=field,
        calls=_calls(message.get("tool_calls")),
        cut=_get(choices[0], "finish_reason") == "length",
        prompt_tokens=counts[0] if counted else 0,
        completion_tokens=counts[1] if counted else 0,
        counted=counted,
    )


def _calls(value: Any) -> tuple[NativeCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UnreadableReplyError("its tool_calls are no list")
    calls = []
    for entry in value:
        function = _get(entry, "function")
        name, arguments = _get(function, "name"), _get(function, "arguments")
        if not isinstance(name, str) or not isinstance(arguments, str | None):
            raise UnreadableReplyError("a tool call has no function with a name and arguments as text")
        identity = _get(entry, "id")
        calls.append(NativeCall(identity if isinstance(identity, str) else "", _text(name), _text(arguments)))
    return tuple(calls)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """A text; the text parts of a list of parts; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [_get(part, "text") for part in value if _get(part, "type") in ("text", "output_text")]
        value = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(value, str):
        raise UnreadableReplyError(f"it has a {type(value).__name__} where a text should be")
    return value.encode(errors="replace").decode()

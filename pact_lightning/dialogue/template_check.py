"""Comparison of the package's rendering with the tokenizer's own chat template.

A model knows the format of its own template. Where this package writes another one, the policy would start from a
format that it has never seen, and nothing later would say so.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pact_lightning.dialogue.chat_template import TemplateFailedError, apply_template
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.types.prompt import Message, ToolSchema
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.errors import differing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_USER: Message = {"role": "user", "content": "How far is it to Malmö?"}
_TOOLS: tuple[ToolSchema, ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Gives the {name}.",
            "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
        },
    }
    for name in ("distance", "fare")
)
_THOUGHT = "First the distance."
_CALLS = tuple(ToolCall(name=tool["function"]["name"], arguments={"to": "Malmö", "unit": 1}) for tool in _TOOLS)
_RESPONSES = ('{"km": 28}', "120")
_EMPTY = "<think>\n\n</think>\n\n"
_SHOWN = 100


def check_template(renderer: ChatRenderer, *, allow_difference: bool) -> None:
    """Compare the renderer with its tokenizer's own chat template; without a template there is nothing to compare.

    Compared are a prompt with and without a system message and tools, and a turn with thinking, calls and responses.
    Left out is what a template cannot render: tools, calls or thinking that do not show up in its text. Earlier
    thinking, which most templates take out later, is in the turn that is compared still there.

    Args:
        renderer: The renderer.
        allow_difference: Whether a difference is only logged.

    Raises:
        ValueError: There is a difference, or the template does not render a prompt at all.
    """
    if not renderer.codec.tokenizer.chat_template:
        return
    problem = next(_differences(renderer), None)
    if problem is None:
        return
    if not allow_difference:
        raise ValueError(
            f"the chat template of the tokenizer {renderer.codec.tokenizer.name_or_path!r} {problem}. The policy would "
            "have to learn a new format. Use a model with Qwen3's format, or set "
            "model.policy.allow_template_difference to true to train it with this package's format"
        )
    _log.warning("the tokenizer's chat template %s; this run trains with the package's own format", problem)


def _differences(renderer: ChatRenderer) -> Iterator[str]:
    """Yield a sentence's end for each difference, first those of plain prompts."""
    tokenizer = renderer.codec.tokenizer
    plain: dict[str, str] = {}
    for what, messages in (("a user message", [_USER]), ("a system and a user message", [_SYSTEM, _USER])):
        try:
            plain[what] = apply_template(tokenizer, messages)
            with_tools = apply_template(tokenizer, messages, _TOOLS)
        except TemplateFailedError as error:
            yield f"does not render {what}: {error}"
            continue
        yield from _compared(what, plain[what], renderer, messages)
        if with_tools != plain[what]:
            yield from _compared(f"{what} with tools", with_tools, renderer, messages, _TOOLS)
    yield from _turn_differences(renderer)


def _turn_differences(renderer: ChatRenderer) -> Iterator[str]:
    """Compare a turn with two calls and their responses, with thinking and without, as far as the template can."""
    for thought in (_THOUGHT, ""):
        own = _own_turn(renderer.codec.tokenizer, thought)
        if own is None:
            continue
        turn = renderer.expert_turn(thought, _CALLS).ids.tolist()
        ids = [*renderer.prompt([_SYSTEM, _USER], _TOOLS), *turn, *renderer.observation(_RESPONSES)]
        what = "a turn with thinking and calls" if thought else "a turn with calls"
        # In a turn without thinking some templates write an empty thinking block, and some do not.
        yield from _described(what, own.replace(_EMPTY, ""), renderer.codec.decode(ids).replace(_EMPTY, ""))


def _own_turn(tokenizer: "PreTrainedTokenizerBase", thought: str) -> str | None:
    """Render the turn by the template; ``None`` where it leaves out a part."""
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for n, call in enumerate(_CALLS)
    ]
    said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    if thought:
        said["reasoning_content"] = thought
    responses = [
        {"role": "tool", "content": response, "tool_call_id": f"call_{n}"} for n, response in enumerate(_RESPONSES)
    ]
    try:
        own = apply_template(tokenizer, [dict(_SYSTEM), dict(_USER), said, *responses], _TOOLS)
    except TemplateFailedError:
        return None
    behind = own.partition(_USER["content"])[2]
    parts = [*(call["name"] for call in _CALLS), *_RESPONSES, *([thought] if thought else [])]
    return own if all(part in behind for part in parts) else None


def _compared(
    what: str, own: str, renderer: ChatRenderer, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> Iterator[str]:
    yield from _described(what, own, renderer.codec.decode(renderer.prompt(messages, tools)))


def _described(what: str, own: str, ours: str) -> Iterator[str]:
    if own == ours:
        return
    theirs, here = differing(own, ours, _SHOWN)
    yield f"renders {what} as {theirs}, and this package as {here}"

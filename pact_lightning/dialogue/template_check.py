"""Comparison of the package's rendering with the tokenizer's own chat template.

A model knows the format of its own template. Where this package writes another one, the policy would start from a
format that it has never seen, and nothing later would say so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pact_lightning.dialogue.chat_template import TemplateFailedError, apply_template
from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.types.prompt import Message, ToolSchema
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.errors import differing

_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_USER: Message = {"role": "user", "content": "How far is it to Malmö?"}
_TOOLS: tuple[ToolSchema, ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Gives the {name}.",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string"}, "exact": {"type": "boolean"}},
                "required": ["to"],
            },
        },
    }
    for name in ("distance", "fare")
)
_THOUGHT = "First the distance."
_CALLS = tuple(
    ToolCall(name=tool["function"]["name"], arguments={"to": "Malmö", "unit": 1, "exact": True}) for tool in _TOOLS
)
_RESPONSES = ('{"km": 28}', "120")
_EMPTY = re.compile(r"<think>\s*</think>\s*")
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between a renderer and a tokenizer's own template.

    Attributes:
        token: Index of the first token that differs.
        text: End of a sentence that says what differs, and how.
    """

    token: int
    text: str


def first_difference(renderer: Renderer) -> Difference | None:
    """Compare the renderer with its tokenizer's own chat template; without a template there is nothing to compare.

    Compared are a prompt with and without a system message and tools, and a turn with thinking, calls and responses.
    Left out is what a template cannot render: tools, calls or thinking that do not show up in its text. Earlier
    thinking, which most templates take out later, is in the turn that is compared still there.

    Args:
        renderer: The renderer.

    Returns:
        The first difference, ``None`` without one.
    """
    return next(_differences(renderer), None) if renderer.codec.tokenizer.chat_template else None


def _differences(renderer: Renderer) -> Iterator[Difference]:
    """Yield each difference, first those of plain prompts."""
    plain: dict[str, str] = {}
    for what, messages in (("a user message", [_USER]), ("a system and a user message", [_SYSTEM, _USER])):
        try:
            plain[what] = _by_template(renderer, messages)
            with_tools = _by_template(renderer, messages, _TOOLS)
        except TemplateFailedError as error:
            yield Difference(0, f"does not render {what}: {error}")
            continue
        yield from _compared(what, plain[what], renderer, messages)
        if with_tools != plain[what]:
            yield from _compared(f"{what} with tools", with_tools, renderer, messages, _TOOLS)
    yield from _turn_differences(renderer)


def _by_template(renderer: Renderer, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSchema] = ()) -> str:
    arguments = renderer.template_arguments
    text = apply_template(renderer.codec.tokenizer, messages, tools, **arguments)
    # The template of gpt-oss writes today's date, whatever date it is told.
    fixed = arguments.get("conversation_start_date")
    return text if fixed is None else text.replace(datetime.now().astimezone().strftime("%Y-%m-%d"), fixed)


def _turn_differences(renderer: Renderer) -> Iterator[Difference]:
    """Compare a turn with calls and their responses, with thinking and without, as far as both can."""
    for thought in (_THOUGHT, ""):
        what = f"a turn with {'thinking and ' * bool(thought)}calls"
        refusal: ValueError | None = None
        for count in (len(_CALLS), 1):  # some families write one call in a turn
            own = _own_turn(renderer, thought, count)
            if own is None:
                continue
            try:
                ours = _our_turn(renderer, thought, count)
            except ValueError as error:
                refusal = error
                continue
            # In a turn without thinking some templates write an empty thinking block, and some do not.
            yield from _described(what, _EMPTY.sub("", own), _EMPTY.sub("", ours), renderer)
            break
        else:
            if refusal is not None:
                yield Difference(0, f"renders {what}, and {refusal}")


def _our_turn(renderer: Renderer, thought: str, count: int) -> str:
    prompt = renderer.prompt([_SYSTEM, _USER], _TOOLS)
    turn = renderer.expert_turn(thought, _CALLS[:count], before=prompt, tools=_TOOLS).ids.tolist()
    return renderer.codec.decode([*prompt, *turn, *renderer.observation(_RESPONSES[:count], after=turn)])


def _own_turn(renderer: Renderer, thought: str, count: int) -> str | None:
    """Render the turn by the template; ``None`` where it leaves out a part."""
    names = [call["name"] for call in _CALLS[:count]]
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for n, call in enumerate(_CALLS[:count])
    ]
    said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    if thought:
        said["reasoning_content"] = thought
    responses = [
        {"role": "tool", "content": response, "tool_call_id": f"call_{n}", "name": names[n]}
        for n, response in enumerate(_RESPONSES[:count])
    ]
    try:
        own = _by_template(renderer, [dict(_SYSTEM), dict(_USER), said, *responses], _TOOLS)
    except TemplateFailedError:
        return None
    behind = own.partition(_USER["content"])[2]
    # Some templates quote a response as JSON.
    told = [json.dumps(response)[1:-1] if response not in behind else response for response in _RESPONSES[:count]]
    return own if all(part in behind for part in [*names, *told, *([thought] if thought else [])]) else None


def _compared(
    what: str, own: str, renderer: Renderer, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> Iterator[Difference]:
    try:
        ids = renderer.prompt(messages, tools)
    except ValueError as error:
        yield Difference(0, f"renders {what}, and {error}")
        return
    yield from _described(what, own, renderer.codec.decode(ids), renderer)


def _described(what: str, own: str, ours: str, renderer: Renderer) -> Iterator[Difference]:
    if own == ours:
        return
    theirs, here = differing(own, ours, _SHOWN)
    ids = [renderer.codec.control(text) for text in (own, ours)]
    token = next((n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
    yield Difference(token, f"renders {what} as {theirs}, and this package as {here} (from token {token} on)")

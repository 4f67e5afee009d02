"""Chat templates: the tokenizer's own, as far as the package asks it, and one of the package's format."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from pact_lightning.dialogue.tool_text import MORE_TOOLS_HEAD, TOOLS_HEAD, TOOLS_TAIL
from pact_lightning.types.prompt import ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_TURN = "<|im_start|>assistant\n"
OPEN_THINKING = OPEN_TURN + "<think>\n"
"""Generation prompt of models that always think: they write ``</think>`` alone."""


class TemplateFailedError(ValueError):
    """Error of a chat template that cannot render a dialogue."""


def apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[ToolSchema] = (),
    **arguments: Any,
) -> str:
    """Render a dialogue and the generation prompt by the tokenizer's own template.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The dialogue.
        tools: Schemas of the tools.
        **arguments: The template's own arguments.

    Raises:
        TemplateFailedError: The template refuses the dialogue, or is broken.
    """
    render: Any = tokenizer.apply_chat_template
    try:
        rendered = render(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=True,
            **arguments,
        )
    except (
        TemplateError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TemplateFailedError(str(error).rstrip(".") or type(error).__name__) from error
    return str(rendered)


def opens_thinking(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether the tokenizer's own template opens the thinking in the generation prompt."""
    if not tokenizer.chat_template:
        return False
    try:
        return apply_template(tokenizer, [{"role": "user", "content": "a"}]).endswith(OPEN_THINKING)
    except TemplateFailedError:
        return False


def default_system(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the system message that the tokenizer's own template writes where a dialogue has none, as Qwen2.5's."""
    if not tokenizer.chat_template:
        return None
    try:
        text = apply_template(tokenizer, [{"role": "user", "content": "a"}])
    except TemplateFailedError:
        return None
    found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n", text, re.DOTALL)
    return None if found is None else found[1]


_PACKAGE_TEMPLATE = """\
{%- set first = messages[0] -%}
{%- set own = first.content if first.role == "system" else DEFAULT_SYSTEM -%}
{%- if tools or own is not none %}{{ "<|im_start|>system\\n" }}
{%- if own is not none %}{{ own }}{% endif %}
{%- if tools %}{{ ("\\n\\n" if own is not none else "") + TOOLS_HEAD }}
{%- for tool in tools %}{{ "\\n" + tool | tojson }}{% endfor %}{{ TOOLS_TAIL }}
{%- endif %}{{ "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == "user" %}{{ "<|im_start|>user\\n" + message.content }}
{%- if message.tools %}{{ ("\\n\\n" if message.content else "") + MORE_TOOLS_HEAD }}
{%- for tool in message.tools %}{{ "\\n" + tool | tojson }}{% endfor %}{{ "\\n</tools>" }}
{%- endif %}{{ "<|im_end|>\\n" }}
{%- elif message.role == "tool" %}
{%- set opens = loop.first or loop.previtem.role != "tool" %}
{{- "<|im_start|>user\\n" if opens else "\\n" }}
{{- "<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- if loop.last or loop.nextitem.role != "tool" %}{{ "<|im_end|>\\n" }}{% endif %}
{%- elif message.role == "assistant" %}{{ OPEN_TURN }}
{%- set thought = message.reasoning_content or message.reasoning or "" %}
{%- if thought or ALWAYS_THINKS %}{{ THINK_OPEN + thought + "\\n</think>\\n\\n" }}{% endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{%- set given = function.arguments if function.arguments is string else function.arguments | tojson %}
{{- "\\n" if message.content or not loop.first else "" }}
{{- "<tool_call>\\n" + '{"name": ' + function.name | tojson + ', "arguments": ' + given + "}\\n</tool_call>" }}
{%- endfor %}{{ "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ OPEN_TURN + (THINK_OPEN if ALWAYS_THINKS else "") }}{% endif %}
"""


def package_template(*, opens_thinking: bool = False, default_system: str | None = None) -> str:
    """Return a chat template of the package's format, for the tokenizer of an export.

    Unlike Qwen3's it keeps earlier thinking, as the policy was trained with. Tools that come with a later user turn
    stand in that message, as ``tools``.

    Args:
        opens_thinking: Whether every assistant turn begins in its thinking, as for models that always think.
        default_system: System message of a dialogue that has none of its own.
    """
    names = {"TOOLS_HEAD": TOOLS_HEAD, "TOOLS_TAIL": TOOLS_TAIL, "MORE_TOOLS_HEAD": MORE_TOOLS_HEAD}
    names |= {"OPEN_TURN": OPEN_TURN, "THINK_OPEN": OPEN_THINKING.removeprefix(OPEN_TURN)}
    settings = [f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in names.items()]
    default = "none" if default_system is None else json.dumps(default_system)
    settings.append(f"{{%- set DEFAULT_SYSTEM = {default} -%}}\n")
    settings.append(f"{{%- set ALWAYS_THINKS = {json.dumps(opens_thinking)} -%}}\n")
    return "".join(settings) + _PACKAGE_TEMPLATE.rstrip("\n")

"""The tokenizer's own chat template, as far as the package asks it."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pact_lightning.types.prompt import ToolSchema

OPEN_TURN = "<|im_start|>assistant\n"
OPEN_THINKING = OPEN_TURN + "<think>\n"
"""Generation prompt of models that always think: they write ``</think>`` alone."""


class TemplateFailedError(ValueError):
    """Error of a chat template that cannot render a dialogue."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSchema] = ()
) -> str:
    """Render a dialogue and the generation prompt by the tokenizer's own template.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The dialogue.
        tools: Schemas of the tools.

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
        )
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        raise TemplateFailedError(str(error)) from error
    return str(rendered)


def opens_thinking(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer's own template opens the thinking in the generation prompt."""
    if not tokenizer.chat_template:
        return False
    try:
        return apply_template(tokenizer, [{"role": "user", "content": "a"}]).endswith(OPEN_THINKING)
    except TemplateFailedError:
        return False

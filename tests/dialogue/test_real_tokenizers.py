"""Families over their real vocabularies: the prompt is their own template's, token for token, and turns come back."""

import json
import re
from datetime import datetime

import pytest

pytest.importorskip("renderers", reason="pip install 'pact-lightning[families]'")
from family_tokenizers import controls_of, real_tokenizer, template_of

from pact_lightning.dialogue.families import make_renderer
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.trajectory import Component

PARAMETERS = {"type": "object", "properties": {"to": {"type": "string"}, "by": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "distance", "description": "In km.", "parameters": PARAMETERS}}
MESSAGES = [
    {"role": "system", "content": "Be brief, né?"},
    {"role": "user", "content": "How far is it to Malmö?\n\n  東京?"},
]
CALL = {"name": "distance", "arguments": {"to": "Malmö", "by": 1}}
# vocabulary, template, the family whose control tokens are added where the vocabulary has them not, family
MODELS = {
    "Qwen3": ("qwen3", "qwen3", None, "chatml"),
    "Qwen2.5": ("qwen3", "qwen2_5", None, "chatml"),
    "Qwen3.5": ("qwen3", "qwen3_5_think", None, "qwen3.5"),
    "Qwen3.8": ("qwen3", "qwen3_8", None, "qwen3.8"),
    "Llama 3.1": ("llama3_1", "llama3_1", None, "llama-3"),
    "gpt-oss": ("gptoss", "gptoss", None, "gpt-oss"),
    "Gemma 4": ("gemma3", "gemma4_v5", "gemma4", "gemma4"),
    "GLM-4.5": ("qwen3", "glm4moe", "glm-4.5", "glm-4.5"),
}


@pytest.fixture(scope="module", params=MODELS)
def renderer(request):
    vocabulary, template, controls, family = MODELS[request.param]
    tokenizer = real_tokenizer(vocabulary)
    if controls is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": list(controls_of(controls))})
    tokenizer.chat_template = template_of(template)
    made = make_renderer(tokenizer)
    assert made.family == family
    return made


def test_the_prompt_is_the_template_s_token_for_token(renderer):
    """Of gpt-oss without a system message: its template writes two line breaks behind it, OpenAI's encoder none."""
    tokenizer = renderer.codec.tokenizer
    for messages in (MESSAGES[1:],) if renderer.family == "gpt-oss" else (MESSAGES, MESSAGES[1:]):
        for tools in ([TOOL], []):
            text = tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True, **renderer.template_arguments
            )
            if renderer.family == "gpt-oss":  # its template writes today's date
                text = text.replace(
                    f"{datetime.now():%Y-%m-%d}", renderer.template_arguments["conversation_start_date"]
                )
            assert renderer.prompt(messages, tools) == tokenizer.encode(text, add_special_tokens=False)


def test_an_expert_s_turn_comes_back_and_no_word_from_outside_is_a_control_token(renderer):
    every = "".join(renderer.codec.controls[:40])
    said = renderer.expert_turn("I ask.\nThen I say.", [CALL], tools=[TOOL])
    read = renderer.read_turn(said.ids.tolist(), tools=[TOOL])
    assert (read.calls, read.reasoning) == ((CALL,), "I ask.\nThen I say.")
    assert renderer.one_call == (renderer.family in ("llama-3", "gpt-oss"))
    text = renderer.codec.decode(said.ids[said.components == Component.REASONING])
    assert re.sub(r"\s", "", text).startswith("Iask.ThenIsay.")
    controls = [
        [
            index
            for index in renderer.observation([response], after=said.ids.tolist())
            if renderer.codec.is_control(index)
        ]
        for response in ("28", every)
    ]
    assert controls[0] == controls[1]
    shown = renderer.codec.decode(renderer.observation([every], after=said.ids.tolist()))
    assert every in shown or json.dumps(every, ensure_ascii=False) in shown
    answer = renderer.expert_turn(
        "Done.", [], "<answer>28</answer>", before=renderer.observation(["28"], after=said.ids.tolist())
    )
    later = renderer.user_turn(UserTurn("And back?"), after=answer.ids.tolist())
    assert "And back?" in renderer.codec.decode(later)
    assert renderer.components(answer.ids.tolist()).tolist().count(Component.ANSWER) > 0

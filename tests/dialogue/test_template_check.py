"""The tokenizer's own chat template against the package's rendering, before a model loads."""

import functools
import json
import logging
import re
import shutil

import pytest
from hand_made import FULL
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pact_lightning.dialogue.chat_template import apply_template, package_template
from pact_lightning.dialogue.families import make_renderer
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.template_check import first_difference
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import BUNDLED_FOLDER, PolicyConfig, load_tokenizer
from pact_lightning.policy.smollm2 import _CHAT_TEMPLATE
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.update.optimizer import OptimizerConfig

# Of Qwen3's structure: tools in the system turn, calls as JSON, responses as a user turn.
TOOLS_TEXT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n' }}</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>{{ '\n' }}"""
CALLS_TEXT = (
    "{% for call in message.tool_calls or [] %}{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
    """{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>"""
    "{% endfor %}"
)
RESPONSE_TEXT = (
    "{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}{{ '\n' }}<tool_response>\n"
    "{{ message.content }}{{ '\n' }}</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>{{ '\n' }}{% endif %}"
)
QWEN = (
    "{% set own = messages[0].content if messages[0].role == 'system' %}"
    "{% if tools %}<|im_start|>system\n{% if own %}{{ own + '\n\n' }}{% endif %}"
    + TOOLS_TEXT
    + "{% elif own %}<|im_start|>system\n{{ own }}<|im_end|>{{ '\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|im_start|>user\n{{ message.content }}<|im_end|>{{ '\n' }}"
    "{% elif message.role == 'assistant' %}<|im_start|>assistant{{ '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content }}" + CALLS_TEXT + "<|im_end|>{{ '\n' }}"
    "{% elif message.role == 'tool' %}" + RESPONSE_TEXT + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
OPENED = QWEN.replace("assistant{{ '\n' }}{% endif %}", "assistant{{ '\n<think>\n' }}{% endif %}")
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a clerk.<|im_end|>\n{% endif %}" + _CHAT_TEMPLATE
)
SEPARATED = _CHAT_TEMPLATE.replace("}}\n{{", "}}<|im_sep|>{{").replace("assistant\n", "assistant<|im_sep|>")
XML = QWEN.replace("For each function call, return a json object", "Write each function call as XML")
OTHER_CALLS = QWEN.replace('"arguments": {{', '"parameters": {{')
OTHER_RESPONSES = QWEN.replace("<tool_response>", "<result>")
EMPTY_THINKING = QWEN.replace(
    "{% endif %}{{ message.content }}", "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ message.content }}"
)
NO_THINKING = QWEN.replace("message.reasoning_content %}", "false %}")
NO_TOOL_ROLE = QWEN.replace("{% elif message.role == 'tool' %}", "{% elif x %}")


def renderer_with(template):
    tokenizer = load_tokenizer(FULL)
    tokenizer.chat_template = template
    return ChatRenderer(TextCodec(tokenizer))


@pytest.mark.parametrize(
    "template", [None, QWEN, OPENED, _CHAT_TEMPLATE, DEFAULT_SYSTEM, EMPTY_THINKING, NO_THINKING, NO_TOOL_ROLE]
)
def test_a_template_of_the_same_format_is_accepted(template):
    renderer = renderer_with(template)
    assert first_difference(renderer) is None
    assert renderer.opens_thinking == (template == OPENED)


@pytest.mark.parametrize(
    ("template", "theirs", "ours"),
    [
        (SEPARATED, r"'<\|im_start\|>user<\|im_sep\|>How far", r"'<\|im_start\|>user\\nHow far"),
        (XML, "a user message with tools as .*Write each function call as XML", "as .*return a json object"),
        (OTHER_CALLS, "a turn with thinking and calls as .*parameters", "as .*arguments"),
        (OTHER_RESPONSES, "a turn with thinking and calls as .*<result>", "as .*<tool_response>"),
        (QWEN.replace("</think>\n\n", "</think>\n"), "a turn with thinking and calls as .*</think>.n<tool", "</think>"),
        (QWEN.replace("not loop.first", "false"), "a turn with thinking and calls", "as "),
        ("{{ raise_exception('no system') }}", "does not render a user message: no system", ""),
        ("{% if %}", "does not render a user message", ""),
    ],
)
def test_a_template_of_another_format_is_refused_with_both_texts(template, theirs, ours):
    with pytest.raises(ValueError, match=f"(?s){theirs}.*{ours}.*model.policy.allow_template_difference"):
        make_renderer(renderer_with(template).codec.tokenizer, "chatml")


def test_a_difference_that_is_allowed_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        make_renderer(renderer_with(SEPARATED).codec.tokenizer, "chatml", allow_difference=True)
        make_renderer(renderer_with(QWEN).codec.tokenizer, "chatml", allow_difference=True)
    (record,) = caplog.records
    assert "<|im_sep|>" in record.message


def test_a_system_turn_that_the_template_writes_by_itself_is_written():
    renderer = make_renderer(renderer_with(DEFAULT_SYSTEM).codec.tokenizer)
    (first, *_) = renderer.codec.decode(renderer.prompt([{"role": "user", "content": "a"}], [])).split("<|im_end|>")
    assert first == "<|im_start|>system\nYou are a clerk."


def test_a_module_refuses_before_a_model_loads(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER)
    tokenizer.chat_template = SEPARATED
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(BUNDLED_FOLDER / "config.json", tmp_path)  # no weights: nothing could be loaded
    policy = {"model": str(tmp_path), "adapter": "lora"}
    with pytest.raises(ValueError, match="allow_template_difference"):
        PACTModule(policy=PolicyConfig(**policy), optimizer=OptimizerConfig())
    PACTModule(policy=PolicyConfig(**policy, allow_template_difference=True), optimizer=OptimizerConfig())


# ------------------------------------------------------------------------------------------- the package's own template


def with_package_template():
    tokenizer = load_tokenizer(PolicyConfig())
    tokenizer.chat_template = package_template()
    return tokenizer


def test_the_package_s_template_is_the_package_s_format():
    assert first_difference(ChatRenderer(TextCodec(with_package_template()))) is None


def test_a_whole_dialogue_by_the_package_s_template_is_the_stream_that_is_trained():
    """Earlier thinking included; arguments as an object or as text."""
    tokenizer = with_package_template()
    renderer = ChatRenderer(TextCodec(tokenizer))
    for task in BundledTasks("train", 12).load():
        ids, messages = list(renderer.prompt(task.prompt.messages, task.prompt.tools)), list(task.prompt.messages)
        for number, turn in enumerate(task.trace.turns):
            ids += renderer.expert_turn(turn.reasoning, turn.calls).ids.tolist()
            ids += renderer.observation(turn.responses)
            calls = [
                {"function": {**call, "arguments": json.dumps(call["arguments"]) if number % 2 else call["arguments"]}}
                for call in turn.calls
            ]
            said = {"reasoning_content": turn.reasoning, "content": None, "tool_calls": calls}
            messages.append({"role": "assistant"} | said)
            messages += [{"role": "tool", "content": text} for text in turn.responses]
        assert apply_template(tokenizer, messages, task.prompt.tools) == renderer.codec.decode(ids)


@functools.cache
def rendered_by(opens_thinking):
    """A renderer whose tokenizer has the package's template."""
    tokenizer = with_package_template()
    tokenizer.chat_template = package_template(opens_thinking=opens_thinking)
    renderer = ChatRenderer(TextCodec(tokenizer))
    assert renderer.opens_thinking == opens_thinking
    return renderer


TEXT = st.text(max_size=20).filter(lambda text: not re.search(r"<(\||/?t(hink|ool))", text))
# Where a turn begins in white space, tokens end between it and the opened turn that no text can tell.
SAID = TEXT.filter(lambda text: text[:1].strip())
NAMED = st.builds(ToolCall, name=TEXT.filter(bool), arguments=st.dictionaries(TEXT, st.integers() | TEXT, max_size=2))
TOOL = st.builds(
    lambda name, words: {"type": "function", "function": {"name": name, "description": words, "parameters": {}}},
    TEXT,
    TEXT,
)
STEP = st.one_of(
    st.tuples(st.just("calls"), SAID, st.lists(NAMED, min_size=1, max_size=2), st.lists(TEXT, min_size=1, max_size=2)),
    st.tuples(st.just("answer"), SAID, SAID, SAID, st.lists(TOOL, max_size=2)),
)


@given(st.booleans(), st.none() | TEXT, st.lists(TOOL, max_size=2), st.lists(STEP, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_package_s_template_has_the_ids_of_the_stream_over_any_turns(opens, system, tools, steps, as_text):
    """Any texts without control tokens, user turns with tools, earlier thinking, arguments as objects and as text."""
    renderer = rendered_by(opens)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": "Ask."})
    ids = list(renderer.prompt(messages, tools))
    for kind, thought, said, heard, *more in steps:
        turn = {"role": "assistant", "reasoning_content": thought, "content": said if kind == "answer" else ""}
        if kind == "calls":
            ids += renderer.expert_turn(thought, said).ids.tolist() + renderer.observation(heard)
            turn["tool_calls"] = [
                {
                    "function": call | {"arguments": json.dumps(call["arguments"], ensure_ascii=False)}
                    if as_text
                    else call
                }
                for call in said
            ]
            messages += [turn, *({"role": "tool", "content": text} for text in heard)]
        else:
            ids += renderer.expert_turn(thought, (), said).ids.tolist() + renderer.user_turn(
                UserTurn(heard, tuple(*more))
            )
            messages += [turn, {"role": "user", "content": heard, "tools": list(*more)}]
    shown = renderer.codec.tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True)
    assert shown["input_ids"] == ids

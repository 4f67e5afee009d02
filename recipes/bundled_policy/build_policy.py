"""Builder of the blank bundled policy: a small tokenizer and a randomly initialised Qwen3 of a million parameters.

``python recipes/bundled_policy/build_policy.py FOLDER`` is the first step of the recipe that builds the
bundled policy; the two ``fit`` runs that follow teach it (see ``recipes/bundled_policy``).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.bundled.world import NAME_KINDS, syllables, words
from pact_lightning.traces.tokens import render_trace

SPECIAL_TOKENS: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARK_TOKENS: tuple[str, ...] = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
_VOCABULARY = 2000
_SAMPLES = 1500

# Fixed texts of the chat format and of JSON tool schemas. As units of pre-tokenisation they become one token each,
# which keeps a prompt with half a dozen tools near 150 tokens.
_UNITS: tuple[str, ...] = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    " XML tags:\n",
    '{"name": <function-name>, "arguments": <args-json-object>}',
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '.", "parameters": {"type": "object", "properties": {"',
    '": {"type": "string"}',
    '": {"type": "integer"}',
    '}, "required": ["',
    '{"name": "',
    '", "arguments": {"',
    '": "',
    ', "',
    "<answer>",
    "</answer>",
)

_NUMBERS: tuple[str, ...] = (*(f"{number:02d}" for number in range(100)), *(str(digit) for digit in range(10)))


def _pattern() -> str:
    rest = (r" ?[A-Za-z_]+", r" ?\d{1,2}", r" ?[^\sA-Za-z_\d]+", r"\n+", r"\s+")
    return "|".join((*(_escaped(unit) for unit in _UNITS), *rest))


def _escaped(unit: str) -> str:
    """Escape a unit as a literal; :func:`re.escape` also escapes blanks, which the tokenizer's regex engine rejects."""
    return re.sub(r"([.|(){}\[\]?*+^$\\])", r"\\\1", unit)


def _tokenizer(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(_pattern()), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_marks(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(list(MARK_TOKENS))
    make: Any = PreTrainedTokenizerFast  # untyped
    return cast(
        PreTrainedTokenizerFast, make(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer: byte-level BPE on bundled dialogues, with Qwen3's special tokens.

    Names enter the training text in syllables only, so that a name of any split is the same few pieces and no name
    is a token of its own. Numbers are cut into pairs of digits.
    """
    tokenizer = _tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(SPECIAL_TOKENS) - len(MARK_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _with_marks(tokenizer)


def _corpus() -> Iterator[str]:
    """Training text: the fixed units, the syllables, and dialogues without their names."""
    yield from [unit for unit in _UNITS for _ in range(5000)]
    for kind in NAME_KINDS:
        starts, ends = syllables(kind)
        if kind == "last":
            starts = (*starts, *(f" {start}" for start in starts))
        yield from [piece for piece in (*starts, *ends) for _ in range(1000)]
    yield from [f"{space}{number}" for space in ("", " ") for number in _NUMBERS for _ in range(500)]
    names = {word for kind in NAME_KINDS for word in words("train", kind)}
    # Dialogues as the package renders them, spelled in bytes since there is no vocabulary yet.
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    codec = TextCodec(_with_marks(_tokenizer(models.BPE(vocab=alphabet, merges=[]))))
    renderer = ChatRenderer(codec)
    marks = re.compile("|".join(re.escape(mark) for mark in (*SPECIAL_TOKENS, *MARK_TOKENS)))
    for task in BundledTasks("train", _SAMPLES).load():
        assert task.trace is not None
        prompt = renderer.prompt(task.prompt.messages, task.prompt.tools)
        trace = render_trace(renderer, task.trace, with_final=True)
        text = codec.decode([*prompt, *trace.ids.tolist()])
        text = re.sub("[A-Z][a-z]+", lambda match: "" if match.group() in names else match.group(), text)
        yield from marks.split(text)


def build_blank_policy(folder: Path) -> None:
    """Write the tokenizer and a randomly initialised model to a folder."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    build_blank_policy(Path(sys.argv[1]))

"""Tokenizers of model families for tests: single bytes with a family's control tokens, and the families' own templates.

A byte has a token of its own, so that no vocabulary is needed; the chat templates are the models' own, which come with
TRL. Real vocabularies are fetched by ``make tokenizers`` and are looked for in ``tests/tokenizers``.
"""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pact_lightning.dialogue.family import FamilyRenderer
from pact_lightning.dialogue.text_codec import TextCodec

REAL = Path(__file__).parent / "tokenizers"
BEGINS = {"llama3_1": "<|begin_of_text|>", "gemma3": "<bos>"}
_MISSING = re.compile(r"[Tt]oken (?:for )?'([^']+)'")


def byte_tokenizer(controls, *, begin=None, end=None, template=None):
    """Make a tokenizer whose plain tokens are single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(controls))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=begin)
    made.chat_template = template
    return made


@cache
def controls_of(family):
    """Find the control tokens that a family needs, by what its renderer misses."""
    controls = ["<|endoftext|>"]
    while True:
        try:
            FamilyRenderer(TextCodec(byte_tokenizer(controls)), family)
        except ValueError as error:
            found = _MISSING.search(str(error))
            if found is None or found[1] in controls:
                raise
            controls.append(found[1])
        else:
            return tuple(controls)


@cache
def byte_renderer_of(family):
    """A family's renderer over bytes."""
    pytest.importorskip("renderers", reason="pip install 'pact-lightning[families]'")
    return FamilyRenderer(TextCodec(byte_tokenizer(controls_of(family))), family)


def template_of(name):
    """A model's own chat template, as TRL has it."""
    if find_spec("trl") is None:
        pytest.skip("chat templates: pip install 'pact-lightning[bench]'")
    path = Path(find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {path.name}")
    return path.read_text(encoding="utf-8")


@cache
def real_tokenizer(name):
    """A tokenizer with its real vocabulary, without a template."""
    folder = REAL / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("real vocabularies: make tokenizers")
    end = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    end = end if isinstance(end, str) else end["content"]
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, bos_token=BEGINS.get(name)
    )

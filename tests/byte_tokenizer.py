"""Tokenizer for tests whose tokens are known by construction."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def byte_renderer(merges, marks=MARKS):
    """A renderer whose tokens are single bytes, except for the merged ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(list(marks))
    return ChatRenderer(TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")))

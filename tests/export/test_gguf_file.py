"""GGUF files: a real llama.cpp reads the same tokens from the same text, and goes on with the same ones."""

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from byte_tokenizer import MARKS
from test_start import trained as noisy
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pact_lightning.cli.export_run import GGUF, _write_gguf
from pact_lightning.export.card import is_export
from pact_lightning.export.folder import write_export
from pact_lightning.export.gguf_file import _WORDS, check_gguf
from pact_lightning.export.trained import TrainedPolicy
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy.state_dict import trainable_state

TEXT = "<|im_start|>user\nHow far is it to Malmö, in 1234 km? It's  late.\n<|im_end|>\n<|im_start|>assistant\n"
MERGES = [("t", "h"), ("Ġ", "i"), ("1", "2"), ("3", "4"), ("12", "34"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("'", "s")]
TOOL = {"type": "function", "function": {"name": "far", "description": "d", "parameters": {"type": "object"}}}
RUN = """
import json, sys
import xllamacpp

found = []
for path in sys.argv[2:]:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = path, 1024, 1, False, True
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    how = {"temperature": 0, "max_tokens": 16}
    said = server.handle_completions({"prompt": json.loads(sys.argv[1])["text"], **how})
    asked = server.handle_chat_completions({**json.loads(sys.argv[1])["chat"], **how})
    found.append([said["usage"]["prompt_tokens"], said["choices"][0]["text"], asked["usage"]["prompt_tokens"]])
print(json.dumps(found))
"""


def base(folder, kind, cut):
    """A small random model with a tokenizer that cuts text by a regular expression."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate([*alphabet, *(left + right for left, right in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=MERGES))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"), plain])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(list(MARKS))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(folder)
    config = kind(
        vocab_size=320,  # some rows have no token, as in Qwen's models
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.3,
        max_position_embeddings=2048,
        tie_word_embeddings=kind is not LlamaConfig,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return PolicyConfig(model=str(folder), dtype="float32", lora_r=4, attn_implementation="eager")


@pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("gguf") is None, reason="llama.cpp runs it: pip install xllamacpp gguf"
)
def test_llama_cpp_answers_as_transformers_does(tmp_path):
    """Text is cut alike, all weights are in their places, and the chat template renders the same prompt."""
    chat = {"messages": [{"role": "user", "content": "How far?"}], "tools": [TOOL]}
    files, wanted = [], []
    for kind, cut in ((Qwen3Config, _WORDS % ""), (Qwen2Config, _WORDS % ""), (LlamaConfig, _WORDS % "{1,3}")):
        config = base(tmp_path / f"{kind.__name__}-base", kind, cut)
        policy = TrainedPolicy(config, trainable_state(noisy(config)), "PACTModule")
        check_gguf(config)
        out, plain = tmp_path / kind.__name__, tmp_path / f"{kind.__name__}-merged"
        _write_gguf(policy, out, "agent")
        assert is_export(out)
        write_export(policy, plain, "merged")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
        ids = tokenizer(TEXT, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=16)[0, ids["input_ids"].shape[1] :]
        shown = tokenizer.apply_chat_template(chat["messages"], tools=chat["tools"], add_generation_prompt=True)
        said = tokenizer.decode([index for index in said.tolist() if index < len(tokenizer)], skip_special_tokens=True)
        wanted.append([ids["input_ids"].shape[1], said, len(shown["input_ids"])])
        files.append(str(out / GGUF))
    command = [sys.executable, "-c", RUN, json.dumps({"text": TEXT, "chat": chat}), *files]
    answered = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answered.stdout.splitlines()[-1]) == wanted


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gpt_oss"}, "and not for gpt_oss; export it `merged` and run llama.cpp's own converter"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "not for .*yarn.*convert_hf_to_gguf.py"),
        ({}, "llama.cpp is not known to cut text as this tokenizer does"),
    ],
)
def test_what_cannot_be_written_is_told_before_a_model_loads(monkeypatch, changes, sentence):
    """The bundled tokenizer is the last one: it has whole sentences as tokens."""
    pytest.importorskip("gguf")
    facts = {"model_type": "qwen3", "rope_parameters": {"rope_type": "default"}} | changes
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: SimpleNamespace(**facts))
    with pytest.raises(ValueError, match=sentence):
        check_gguf(PolicyConfig())

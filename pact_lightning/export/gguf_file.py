"""GGUF file of a merged model, for llama.cpp and what builds on it, written by the library ``gguf``.

Llama and Qwen's dense models are written here; for others llama.cpp's own converter does it. A tokenizer is accepted
only if llama.cpp cuts text as it does: otherwise the model would read other tokens than it was trained on.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pact_lightning.policy.loading import PolicyConfig, load_tokenizer, policy_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ARCHITECTURES = {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama"}
"""GGUF's name of an architecture by transformers' ``model_type``."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {_WORDS % "": "qwen2", _WORDS % "{1,3}": "llama-bpe"}
"""GGUF's name of a way of cutting text by its regular expression."""
_CONVERT = (
    "export it `merged` and run llama.cpp's own converter: `python convert_hf_to_gguf.py FOLDER --outfile model.gguf`, "
    "then `llama-quantize model.gguf small.gguf Q4_K_M` for fewer bits"
)


def check_gguf(config: PolicyConfig) -> None:
    """Refuse a policy that cannot be written as GGUF, before its weights are loaded.

    Raises:
        ImportError: ``gguf`` is not installed.
        ValueError: Its architecture or its tokenizer has no place here.
    """
    from transformers import AutoConfig

    if find_spec("gguf") is None:
        raise ImportError("GGUF files are written by the package gguf; run: pip install 'pact-lightning[gguf]'")
    model = AutoConfig.from_pretrained(policy_source(config), **_gguf_file(config))
    if model.model_type not in _ARCHITECTURES:
        raise ValueError(f"GGUF is written for {', '.join(_ARCHITECTURES)}, and not for {model.model_type}; {_CONVERT}")
    rope = getattr(model, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default" or getattr(model, "use_sliding_window", False):
        raise ValueError(
            f"GGUF is written for plain rotary embeddings and full attention, and not for {rope}; {_CONVERT}"
        )
    _cut(load_tokenizer(config))


def write_gguf(folder: Path, tokenizer: "PreTrainedTokenizerBase", file: Path) -> None:
    """Write a model folder as one GGUF file, in the type of its weights.

    Args:
        folder: A merged export.
        tokenizer: Its tokenizer, with its chat template.
        file: The file.
    """
    import gguf
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model: Any = loader.from_pretrained(folder)
    config, kind = model.config, _ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(file, kind)
    _write_config(writer, config)
    _write_tokenizer(writer, tokenizer, config)
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    types = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16}
    written = types.get(model.dtype, gguf.GGMLQuantizationType.BF16)
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(written.name, f"MOSTLY_{written.name}")])
    for name, weight in _weights(model, config):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, f"llama.cpp has no place for {name}"
        values = weight.detach().to(torch.float32).numpy()
        if values.ndim == 1:  # norms and biases are few, and llama.cpp wants them so
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, gguf.quants.quantize(values, written), raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(model: Any, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by name; a tied head is left out."""
    for name, weight in model.named_parameters():
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            yield name, _interleaved(weight, heads)
        else:
            yield name, weight


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Put the two halves of each head in turns, as llama.cpp's rotary embedding of Llama pairs them, ``[H*D, N]``."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _write_config(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, tokenizer: "PreTrainedTokenizerBase", config: Any) -> None:
    import gguf

    backend = _backend(tokenizer)
    by_id = {index: token for token, index in cast(Mapping[str, int], backend["model"]["vocab"]).items()}
    kinds = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    for added in backend["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    rows = range(max(config.vocab_size, max(by_id) + 1))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(tokenizer))
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in rows])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in rows])
    merges = backend["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ends = {"eos": tokenizer.convert_tokens_to_ids("<|im_end|>"), "pad": tokenizer.pad_token_id}
    for name, index in ends.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _cut(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return GGUF's name of the way in which a tokenizer cuts text.

    Raises:
        ValueError: It has none that is known here.
    """
    backend = _backend(tokenizer)
    steps = (backend.get("pre_tokenizer") or {}).get("pretokenizers") or []
    kinds = [step["type"] for step in steps]
    found = None
    if backend["model"]["type"] == "BPE" and kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        found = _CUTS.get(steps[0]["pattern"].get("Regex"))
    elif backend["model"]["type"] == "BPE" and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        found = "smollm"
    if found is None:
        raise ValueError(
            "llama.cpp is not known to cut text as this tokenizer does, so the model would read other tokens "
            f"than it was trained on; if a newer llama.cpp knows this tokenizer, {_CONVERT}"
        )
    return found


def _backend(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(cast(Any, tokenizer).backend_tokenizer.to_str()))


def _gguf_file(config: PolicyConfig) -> dict[str, str]:
    return {} if config.gguf_file is None else {"gguf_file": config.gguf_file}

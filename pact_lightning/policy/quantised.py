"""Weights in few bits: the NF4 that QLoRA trains on, and checkpoints that come quantised."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

_READ_OUT = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
"""Forms that transformers takes out of their few bits while it reads them, and their configurations."""


def nf4(compute_dtype: torch.dtype) -> "BitsAndBytesConfig":
    """Configure 4-bit NormalFloat with double quantisation; transformers leaves the head unquantised by default."""
    from transformers import BitsAndBytesConfig

    bits_and_bytes: Any = BitsAndBytesConfig
    config: BitsAndBytesConfig = bits_and_bytes(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    return config


def check_checkpoint(config: "PretrainedConfig", model: str, adapter: str) -> str | None:
    """Check that the weights of a checkpoint can be trained as asked.

    Args:
        config: The model's configuration.
        model: ``policy.model``.
        adapter: ``policy.adapter``.

    Returns:
        The form that the weights come in; ``None`` for floating-point weights.

    Raises:
        ValueError: They come quantised, in a form that does not go with the adapter.
    """
    form = _form(config)
    if form is None or (form == "bitsandbytes_4bit" and adapter == "qlora"):
        return form
    if form == "bitsandbytes_4bit":
        raise ValueError(
            f"the weights of policy.model {model!r} come in 4 bits, and policy.adapter is {adapter!r}; set it to "
            "'qlora', or give the model with weights in 16 bits"
        )
    if form in _READ_OUT and adapter != "qlora":
        return form
    if form in _READ_OUT:
        how = f"quantization_config={_READ_OUT[form]}(dequantize=True), dtype='bfloat16'"
        raise ValueError(
            f"the weights of policy.model {model!r} come in {form} and cannot be put into NF4 while they are read: "
            f"load it once by AutoModelForCausalLM.from_pretrained(..., {how}), save it and its tokenizer with "
            "save_pretrained, and give that folder as policy.model; or set policy.adapter to 'lora', for 16 bits"
        )
    raise ValueError(
        f"the weights of policy.model {model!r} come quantised by {form}, which cannot be trained here; give the model "
        "with weights in 16 bits, and policy.adapter 'qlora' puts them into NF4"
    )


def _form(config: "PretrainedConfig") -> str | None:
    given: Any = getattr(config, "quantization_config", None)
    if given is None:
        return None
    fields: dict[str, Any] = given if isinstance(given, dict) else given.to_dict()
    method = str(fields.get("quant_method") or "bitsandbytes")
    if method != "bitsandbytes":
        return method
    return "bitsandbytes_4bit" if fields.get("load_in_4bit") else "bitsandbytes_8bit"


def read_out(form: str | None) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that take weights of a form out of their few bits."""
    if form not in _READ_OUT:
        return {}
    import transformers

    return {"quantization_config": getattr(transformers, _READ_OUT[str(form)])(dequantize=True)}


def keep_differentiable_layout(model: "PreTrainedModel") -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It does so at the first forward in evaluation mode, for good, and its product on repacked weights has no backward:
    after one rollout every gradient through a 4-bit layer would be wrong, in training mode too.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

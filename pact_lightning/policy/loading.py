"""Loading of the policy: full weights, LoRA, or LoRA on a base quantised to 4 bits; with or without values."""

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pact_lightning.policy.attention.plan import register_attention
from pact_lightning.policy.experts import (
    check_no_expert_is_adapted,
    dequantise_experts,
    experts_per_token,
    experts_sentence,
    layers_beside_experts,
    quantise_experts,
)
from pact_lightning.policy.model_files import read_config, read_tokenizer
from pact_lightning.policy.own_attention import AUTO_ATTENTION, attention_for, own_attention
from pact_lightning.policy.quantised import check_checkpoint, keep_differentiable_layout, nf4, read_out
from pact_lightning.policy.start_adapter import base_of, is_adapter, put_adapter_on, read_adapter
from pact_lightning.policy.text_layers import check_generates_text, outside_text
from pact_lightning.utils.hub import use_cache_where_unreachable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "bundled"
"""The ``model`` that stands for the small policy in this package."""
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "tasks" / "bundled" / "policy"

ALL_LINEAR = "all-linear"
"""The ``target_modules`` that stand for every linear layer of the text model but the head."""

Adapter = Literal["lora", "qlora", "full"]
Precision = Literal["float32", "bfloat16", "auto"]

_HUB_ID = re.compile(r"[\w.-]*\w[\w.-]*(/[\w.-]*\w[\w.-]*)?")


@dataclass(frozen=True)
class PolicyConfig:
    """Policy to train, and its trained weights.

    Attributes:
        model: A folder with a transformers model, a hub id, or ``bundled`` for the small policy in this package. A
            folder with an adapter stands for its base and ``start_from``.
        start_from: Trained weights to begin from [D]: a folder with a LoRA, as ``ExportPolicy`` or PEFT writes it, or
            a checkpoint (``.ckpt``) of a fit. Its rank, scale and layers hold in place of the fields here. The
            reference is the model with these weights.
        adapter: What is trained: ``lora`` (an adapter on frozen weights), ``qlora`` (an adapter on frozen NF4 weights)
            or ``full`` (all weights, as in the paper [P]).
        lora_r: Rank of the adapter.
        lora_alpha: The adapter's output is scaled by ``lora_alpha / lora_r``.
        lora_dropout: Dropout in front of the adapter; above 0 the ratio of an unchanged policy is no longer 1.
        target_modules: Names of the adapted layers, or ``all-linear`` for every linear layer but the head; in a mixture
            of experts for those of the attention.
        dtype: Type of the weights that are not quantised, and of the computation on 4-bit weights; ``auto`` takes
            what the model was saved in. LoRA weights are float32 in any case.
        gguf_file: Name of a GGUF file in the model's folder, for models that come as one.
        attn_implementation: Attention function: ``pact`` runs packs; ``auto`` takes it where the model attends fully,
            and transformers' own, one row at a time, where it has windows, sinks or linear attention.
        gradient_checkpointing: Whether layers are computed again in the backward pass, to save memory.
        seed: Seed of the adapter's first weights.
        renderer: Family of the dialogue's format: ``auto`` recognises it by the tokenizer's own chat template,
            ``chatml`` is this package's, and every other name one of the library ``renderers`` (docs/models.md).
        allow_template_difference: Whether a tokenizer's own chat template may render a prompt otherwise than this
            package; the policy is then trained on the package's format, which it may not know.
    """

    model: str = BUNDLED
    start_from: str | None = None
    adapter: Adapter = "lora"
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR
    dtype: Precision = "auto"
    gguf_file: str | None = None
    attn_implementation: str = AUTO_ATTENTION
    gradient_checkpointing: bool = False
    seed: int = 0
    renderer: str = "auto"
    allow_template_difference: bool = False


def with_start(config: PolicyConfig) -> PolicyConfig:
    """Return a config in which an adapter to start from has its say: its base, its rank, its scale, its layers.

    Raises:
        FileNotFoundError: ``start_from`` is not there.
        ValueError: It is no adapter that can be trained further.
    """
    model, start = config.model, config.start_from
    if start is None and is_adapter(Path(model).expanduser()):
        model, start = base_of(Path(model).expanduser()), model
    if start is None or Path(start).expanduser().is_file():  # a checkpoint is read by the module, once it is loaded
        return config
    adapter = read_adapter(Path(start).expanduser())
    config = replace(config, model=model, start_from=start)
    if config.adapter == "full":
        return config
    layers = adapter["target_modules"]
    return replace(
        config,
        lora_r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=layers if isinstance(layers, str) else sorted(layers),
    )


def load_tokenizer(config: PolicyConfig) -> "PreTrainedTokenizerBase":
    """Load the policy's tokenizer.

    Raises:
        OSError: The model's folder or a file is missing or broken.
        ValueError: The files make no tokenizer.
    """
    config = with_start(config)
    return read_tokenizer(policy_source(config), config.model, _gguf(config))


def load_end_ids(config: PolicyConfig) -> tuple[int, ...]:
    """Load the tokens at which transformers' ``generate`` ends: of ``generation_config.json``, else ``config.json``.

    Some models name several, and write another one than the tokenizer's ``eos_token``.

    Returns:
        Their ids; none for a GGUF file, whose end token is the tokenizer's.

    Raises:
        OSError: A file is missing or broken.
    """
    if config.gguf_file is not None:
        return ()
    from transformers import GenerationConfig

    source, name = policy_source(config), "generation_config.json"
    maker: Any = GenerationConfig  # untyped
    try:
        found = maker.from_pretrained(source)
    except OSError:
        if (Path(source) / name).is_file():
            raise
        found = maker.from_model_config(_model_config(config))
    ids = found.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def load_model_type(config: PolicyConfig) -> str | None:
    """Load the type of the policy's model, as ``config.json`` names it.

    Raises:
        OSError: The file is missing or broken.
    """
    found: str | None = _model_config(with_start(config)).model_type
    return found


def load_policy(config: PolicyConfig, *, dequantized: bool = False) -> "PeftModel | PreTrainedModel":
    """Load the policy in training mode: exactly the weights to be trained require gradient.

    A fresh adapter adds nothing, since its second matrix is zero: at the start policy and reference are equal. An
    adapter to start from is put on the model, and for ``full`` merged into it; a checkpoint is left to the module.

    Args:
        config: Which policy.
        dequantized: Take a ``qlora`` base out of its 4 bits again, so that the adapter can be merged into it.

    Returns:
        A ``PeftModel`` for ``lora`` and ``qlora``, the plain model for ``full``.

    Raises:
        FileNotFoundError: The model's folder or file is missing.
        ValueError: ``qlora`` is asked for on a GGUF file.
    """
    config = with_start(config)
    source = policy_source(config)
    if config.adapter == "qlora" and config.gguf_file is not None:
        raise ValueError(
            f"a GGUF file cannot be quantised while it is read: load {config.gguf_file} with adapter='lora', save it "
            "with save_pretrained, and give that folder as the model"
        )
    model_config = checked_config(config)
    mixture = config.adapter != "full" and experts_per_token(model_config) is not None
    if mixture and config.target_modules != ALL_LINEAR:
        policy_skeleton(config)  # refuses names of experts before weights are read
    arguments: dict[str, Any] = {"dtype": _dtype(config.dtype), "attn_implementation": _attention(model_config, config)}
    if config.adapter == "qlora":
        arguments["quantization_config"] = nf4(compute_dtype(config))
        if mixture:  # all experts come in 16 bits, which a card need not hold
            arguments["device_map"] = {"": "cpu"}
    else:
        arguments |= read_out(check_checkpoint(model_config, config.model, config.adapter))
    from transformers import AutoModelForCausalLM

    register_attention()
    base: Any = AutoModelForCausalLM.from_pretrained(source, **arguments, **_gguf(config))
    if mixture and (experts := experts_sentence(base)) is not None:
        in_nf4 = ", in NF4" if config.adapter == "qlora" else ""
        rank_zero_warn(f"{experts}: LoRA leaves them frozen{in_nf4}, and all-linear adapts layers of the attention")
    if mixture and config.adapter == "qlora":
        quantise_experts(base)
        base.to(torch.get_default_device())
    if dequantized and config.adapter == "qlora":
        dequantise_experts(base)
        base, config = base.dequantize(), replace(config, adapter="lora")
    return made_trainable(cast("PreTrainedModel", base), config)


def policy_positions(config: PolicyConfig) -> int | None:
    """Return how many positions the policy has for the tokens of a sequence, where its configuration says so.

    Raises:
        FileNotFoundError: The model's folder or file is missing.
    """
    text = _model_config(with_start(config)).get_text_config()
    return getattr(text, "max_position_embeddings", None)


def policy_skeleton(config: PolicyConfig) -> "PeftModel | PreTrainedModel":
    """Make the policy on the meta device, without values, from its configuration alone.

    Linear layers that ``qlora`` would quantise are plain ones here, in the type that they compute in.

    Raises:
        FileNotFoundError: The model's folder or file is missing.
    """
    from transformers import AutoModelForCausalLM

    register_attention()
    config = with_start(config)
    model_config = checked_config(config)
    wanted = _dtype(config.dtype)
    dtype = (model_config.dtype or torch.float32) if wanted == "auto" else wanted
    with torch.device("meta"):
        model_maker: Any = AutoModelForCausalLM
        attention = attention_for(model_config, config.attn_implementation)
        base = model_maker.from_config(model_config, dtype=dtype, attn_implementation=attention)
        if config.adapter == "qlora":
            quantise_experts(base)
        return made_trainable(cast("PreTrainedModel", base), config)


def made_trainable(model: "PreTrainedModel", config: PolicyConfig) -> "PeftModel | PreTrainedModel":
    """Make a loaded base the policy: with its adapter, in training mode, without a cache of transformers'.

    Args:
        model: The base, loaded as ``config`` says; it may be on the meta device.
        config: Which policy it is to be.
    """
    model.config.use_cache = False
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if config.adapter == "qlora":
        keep_differentiable_layout(model)
    policy: PeftModel | PreTrainedModel = model
    started = None if config.start_from is None else Path(config.start_from).expanduser()
    if started is not None and started.is_dir() and model.device.type != "meta":
        policy = put_adapter_on(model, started, config.lora_dropout)
        if config.adapter == "full":
            policy = cast("PreTrainedModel", policy.merge_and_unload())
            policy.requires_grad_(True)
    elif config.adapter != "full":
        policy = _with_adapter(model, config)
    # from_pretrained gives evaluation mode, which Lightning keeps, and in which checkpointing is silently off.
    return policy.train()


def policy_source(config: PolicyConfig) -> str:
    """Return the folder or hub id of the policy's base, checked before anything is loaded.

    Raises:
        FileNotFoundError: The folder or its file is missing.
    """
    if config.model == BUNDLED:
        folder = BUNDLED_FOLDER
    else:
        folder = Path(config.model).expanduser()
        if not folder.exists() and _HUB_ID.fullmatch(config.model):
            use_cache_where_unreachable()
            return config.model
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {folder}; set policy.model to an existing folder, a hub id or '{BUNDLED}'"
        )
    wanted = config.gguf_file or "config.json"
    if not (folder / wanted).is_file():
        raise FileNotFoundError(f"the model folder {folder} has no {wanted}; set policy.model to a folder that has one")
    return str(folder)


def _model_config(config: PolicyConfig) -> "PretrainedConfig":
    return read_config(policy_source(config), config.model, _gguf(config))


def checked_config(config: PolicyConfig) -> "PretrainedConfig":
    """Read the configuration of the policy's base, and check that it can be trained as asked.

    Raises:
        OSError: A file is missing or broken.
        ValueError: The model is of no known type, does not generate text, or comes quantised in another form.
    """
    found = _model_config(config)
    check_generates_text(found, config.model)
    check_checkpoint(found, config.model, config.adapter)
    return found


def _attention(model_config: "PretrainedConfig", config: PolicyConfig) -> str | None:
    """Choose the attention function, and say so where it is not attention by plan."""
    chosen = attention_for(model_config, config.attn_implementation)
    if chosen is None:
        rank_zero_info(
            f"the model has {own_attention(model_config)}, which attention over packs does not know: its rows run one "
            "at a time by transformers' own attention, in training and in sampling"
        )
    return chosen


def _gguf(config: PolicyConfig) -> dict[str, str]:
    return {} if config.gguf_file is None else {"gguf_file": config.gguf_file}


def _dtype(name: Precision) -> torch.dtype | str:
    return name if name == "auto" else cast(torch.dtype, getattr(torch, name))


def compute_dtype(config: PolicyConfig) -> torch.dtype:
    """Return the type of the policy's computation: the recipe's, or what the model was saved in."""
    named = _dtype(config.dtype)
    if isinstance(named, torch.dtype):
        return named
    saved: Any = _model_config(config)  # its type says that a name may stand there, which transformers has resolved
    return cast("torch.dtype", saved.dtype or torch.float32)


def enable_gradient_checkpointing(model: Any) -> None:
    """Make a transformers model compute its layers anew in the backward pass."""
    with warnings.catch_warnings():
        # The method has a new name in later 5.x; the old one works in all of them.
        warnings.simplefilter("ignore", FutureWarning)
        # Without re-entrance no input needs a gradient, so frozen embeddings are fine.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _with_adapter(model: "PreTrainedModel", config: PolicyConfig) -> "PeftModel":
    """Put a fresh LoRA on the frozen model.

    PEFT's own preparation for k-bit training is left out [D]: it copies embeddings and head, the largest tensors of a
    small model, to float32. The rest of it, freezing and checkpointing, is done already.
    """
    from peft import LoraConfig, get_peft_model

    targets = config.target_modules
    if targets == ALL_LINEAR and experts_per_token(model.config) is not None:
        targets = layers_beside_experts(model)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=outside_text(model),  # a text policy: the towers of other media see nothing
        bias="none",
        task_type="CAUSAL_LM",
    )
    # Lightning loads the policy with the run's device as the default one. Drawn there, a seed's first weights would be
    # others on a card than on a CPU; PEFT moves them to their layers.
    drawn_on = "meta" if model.device.type == "meta" else "cpu"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(drawn_on):
        torch.manual_seed(config.seed)
        # autocast_adapter_dtype keeps the adapter's own weights in float32 on a bfloat16 base.
        adapted = cast("PeftModel", get_peft_model(model, lora, autocast_adapter_dtype=True))
    check_no_expert_is_adapted(adapted)
    return adapted

"""Adapter that a policy starts from: a folder of PEFT's, from an export of this package's or from anyone."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_lightning.utils.errors import shortened

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MERGE = "merge it into its base (merge_and_unload, save_pretrained) and give that folder as policy.model"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    return (folder / _CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> dict[str, Any]:
    """Read what an adapter says of itself, checked.

    Args:
        folder: A folder with ``adapter_config.json`` and the adapter's weights.

    Returns:
        Fields of ``adapter_config.json``; ``r`` is the largest rank of any layer.

    Raises:
        FileNotFoundError: There is no such folder, or a file of it is missing.
        ValueError: It is no LoRA, or more than one.
    """
    if not (folder / _CONFIG).is_file():
        whole = " (it has a config.json: give it as policy.model)" if (folder / "config.json").is_file() else ""
        raise FileNotFoundError(
            f"policy.start_from {folder} is neither a checkpoint nor a folder with {_CONFIG}{whole}; give a folder "
            "that ExportPolicy or PEFT's save_pretrained wrote for an adapter, or a .ckpt file of a fit"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise FileNotFoundError(
            f"the adapter {folder} has no {_WEIGHTS[0]} beside its {_CONFIG}; copy the whole folder"
        )
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / _CONFIG} is not valid JSON ({error}); copy the adapter again") from error
    if not isinstance(config, dict) or not isinstance(config.get("r"), int) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise ValueError(f"the adapter {folder} is not a LoRA but {shortened(kind)}; {_MERGE}")
    for field, usual in (("modules_to_save", None), ("bias", "none"), ("trainable_token_indices", None)):
        if (config.get(field) or usual) != usual:
            raise ValueError(
                f"the adapter {folder} has {field} {shortened(config[field])}, weights beside the LoRA that neither "
                f"the reference nor an export would keep; {_MERGE}"
            )
    if config.get("target_parameters"):
        names = ", ".join(sorted(map(str, config["target_parameters"])))
        raise ValueError(f"the adapter {folder} is a LoRA of experts ({names}), which is not trained here; {_MERGE}")
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return config | {"r": max(ranks)}


def base_of(folder: Path) -> str:
    """Return the model that an adapter was trained on, by its own word.

    Raises:
        ValueError: It does not say.
    """
    base = read_adapter(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"the adapter {folder} does not say which model it was trained on; set policy.model to it, and "
            "policy.start_from to the adapter"
        )
    return base


def put_adapter_on(model: "PreTrainedModel", folder: Path, dropout: float) -> "PeftModel":
    """Put a trained adapter on a frozen model, to be trained further.

    Args:
        model: The base.
        folder: The adapter's folder.
        dropout: Dropout in front of the adapter from now on.

    Raises:
        ValueError: It does not fit the model.
    """
    from peft import LoraConfig, PeftModel

    read_adapter(folder)
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.lora_dropout, config.inference_mode = dropout, False
    config.base_model_name_or_path = model.name_or_path
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            # autocast_adapter_dtype keeps the adapter's own weights in float32 on a bfloat16 base.
            return PeftModel.from_pretrained(model, folder, is_trainable=True, config=config)
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        why = shortened(" ".join(str(error).split()), 300)
        raise ValueError(
            f"the adapter {folder} does not fit the model {model.name_or_path} ({why}); set policy.model to the model "
            "that it was trained on"
        ) from error


def untie_adapted_head(model: "PeftModel") -> None:
    """Give head and embeddings a tensor each, if they are one and an adapter changes one of them.

    Merged into the common tensor, the adapter of one would change the other as well.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    base: Any = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if not any(isinstance(layer, BaseTunerLayer) for layer in (head, embeddings)):
        return
    head, embeddings = (getattr(layer, "base_layer", layer) for layer in (head, embeddings))
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False

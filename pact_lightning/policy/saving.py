"""Folder with a trained policy's weights, for transformers and PEFT to load."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.policy.start_adapter import untie_adapted_head
from pact_lightning.policy.state_dict import SHARDED_PREFIX, load_trainable_state, without_prefix

Form = Literal["merged", "adapter"]
"""A model that stands alone, or a LoRA beside its base."""


def usual_form(config: PolicyConfig) -> Form:
    """Return the form that changes nothing: merged, but for QLoRA, whose base would have to leave its 4 bits."""
    return "adapter" if config.adapter == "qlora" else "merged"


def check_form(config: PolicyConfig, form: str) -> None:
    """Refuse a form that the policy cannot have.

    Raises:
        ValueError: All of its weights were trained, so there is no adapter.
    """
    if form == "adapter" and config.adapter == "full":
        raise ValueError("all weights were trained (policy.adapter full), so there is no adapter; export it `merged`")


def save_policy(config: PolicyConfig, state: Mapping[str, Tensor], folder: Path, form: Form) -> None:
    """Write the weights and the model's config to a folder.

    The base is loaded anew, so that the policy that was trained stays as it is. Merging takes a QLoRA's base out of its
    4 bits, to the type that it computes in, and rounds the sum to that type.

    Args:
        config: The config that the policy was loaded by.
        state: Its trained weights, as :func:`~pact_lightning.policy.state_dict.trainable_state` returns them.
        folder: Output folder; created if it does not exist.
        form: What to write.

    Raises:
        FileNotFoundError: The base is not there.
        ValueError: The weights do not fit it, or the form does not.
    """
    check_form(config, form)
    if config.start_from is not None and Path(config.start_from).expanduser().is_file():
        config = replace(config, start_from=None)  # a checkpoint, whose weights were the first ones of ``state``
    policy: Any = load_policy(config, dequantized=form == "merged")
    load_trainable_state(policy, without_prefix(policy, state, SHARDED_PREFIX))
    if form == "adapter":
        # Embeddings are frozen; PEFT would add them where an adapter is on them.
        policy.save_pretrained(folder, save_embedding_layers=False)
        return
    if config.adapter != "full":
        untie_adapted_head(policy)
        policy = policy.merge_and_unload()
    policy.config.use_cache = True  # training switches it off
    policy.save_pretrained(folder)

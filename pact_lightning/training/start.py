"""Start of a fit from trained weights, at phase 0: a checkpoint of another fit, or an adapter."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from pact_lightning.policy.loading import PolicyConfig, with_start
from pact_lightning.policy.state_dict import SHARDED_PREFIX, load_trainable_state, without_prefix
from pact_lightning.resume.checkpoint_files import read_checkpoint
from pact_lightning.resume.recipe_change import MADE_BY

_SHAPE = ("lora_r", "lora_alpha", "target_modules")


def start_config(config: PolicyConfig) -> PolicyConfig:
    """Return a config in which what the policy starts from has its say, told where the recipe says otherwise.

    Raises:
        FileNotFoundError: ``start_from`` is not there.
        ValueError: It is no whole checkpoint, or no adapter that can be trained further.
    """
    started = with_start(config)
    path = _checkpoint(started)
    if path is not None:
        saved = _saved_policy(read_checkpoint(path, check=False))
        if config.adapter != "full":
            started = replace(started, **{field: saved[field] for field in _SHAPE if field in saved})
        if saved.get("model", started.model) != started.model:
            rank_zero_warn(
                f"the checkpoint {path} was trained on the model {saved['model']}, and policy.model is "
                f"{started.model}; if these are not the same weights, use the former"
            )
    stated, held = ({field: _sorted(of, field) for field in _SHAPE} for of in (config, started))
    told = [f"{field} {held[field]} (recipe: {stated[field]})" for field in _SHAPE if held[field] != stated[field]]
    if told:
        rank_zero_info(f"of {started.start_from}, from which the policy starts, hold: {', '.join(told)}")
    return started


def load_start(policy: nn.Module, config: PolicyConfig) -> None:
    """Load the weights of a checkpoint to start from into a policy; an adapter was loaded with it.

    Raises:
        ValueError: They do not fit.
    """
    path = _checkpoint(config)
    if path is not None:
        load_trainable_state(policy, without_prefix(policy, read_checkpoint(path)["state_dict"], SHARDED_PREFIX))


def _checkpoint(config: PolicyConfig) -> Path | None:
    path = None if config.start_from is None else Path(config.start_from).expanduser()
    return path if path is not None and path.is_file() else None


def _saved_policy(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    made_by = checkpoint.get(MADE_BY)
    policy = made_by.get("policy") if isinstance(made_by, Mapping) else None
    return policy if isinstance(policy, Mapping) else {}


def _sorted(config: PolicyConfig, field: str) -> Any:
    value = getattr(config, field)
    return sorted(value) if isinstance(value, list) else value

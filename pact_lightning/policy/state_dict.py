"""Trained weights of a policy: their state dict for checkpoints, and its fingerprint."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SHARDED_PREFIX = "policy."
"""Prefix of the names of a sharded policy's weights in checkpoints."""


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that require gradient, by name: the adapter, or all of a policy trained in full.

    Like ``state_dict``, they are the weights themselves and not copies.
    """
    return {name: weight.detach() for name, weight in _trainable(model).items()}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy saved weights into the policy; nothing is copied unless all of them fit.

    Raises:
        ValueError: Names or shapes differ from those of the policy's trained weights.
    """
    weights = _trainable(model)
    missing, unexpected = weights.keys() - state.keys(), state.keys() - weights.keys()
    if missing or unexpected:
        raise ValueError(
            f"the saved weights do not fit the policy: missing {_some(missing)}, unexpected {_some(unexpected)}; "
            "use the same model, adapter and target_modules as the saved run"
        )
    for name, weight in weights.items():
        if weight.shape != state[name].shape:
            raise ValueError(
                f"the saved weight {name} has shape {tuple(state[name].shape)}, the policy's {tuple(weight.shape)}; "
                "use the same model and lora_r as the saved run"
            )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])


def sharded_state(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the trained weights of a sharded policy as FSDP's checkpoints want them, tied ones under all their names.

    Args:
        model: The policy.
        prefix: Prefix of its weights' names in the module that holds it.
    """
    named = model.named_parameters(remove_duplicate=False)
    return {prefix + name: weight.detach() for name, weight in named if weight.requires_grad}


def without_prefix(model: nn.Module, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename the weights of :func:`sharded_state` as :func:`trainable_state` does; those that are named so stay."""
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    plain = {name.removeprefix(prefix): weight for name, weight in state.items()}
    return {name: weight for name, weight in plain.items() if name not in tied}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and bits: equal for equal weights only.

    Args:
        state: Weights by name, on any device.

    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(2)})
    True
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.tensor([0.0, -0.0])})
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(state.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not weights:
        raise ValueError("the policy has no weight that requires gradient, so there is nothing to save or load")
    return weights


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:3]) or "none"
    return shown if len(ordered) <= 3 else f"{shown} and {len(ordered) - 3} more"

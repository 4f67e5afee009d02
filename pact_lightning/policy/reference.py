"""Reference: the frozen start policy that the KL term is measured against."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import nn

from pact_lightning.policy.loading import Adapter


def make_reference(model: nn.Module, adapter: Adapter) -> nn.Module | None:
    """Copy the policy where a frozen copy is needed: an adapter is switched off instead [D].

    Args:
        model: The policy, before any training.
        adapter: What is trained.

    Returns:
        The copy for ``full``, ``None`` for ``lora`` and ``qlora``.
    """
    return deepcopy(model).eval().requires_grad_(False) if adapter == "full" else None


@contextmanager
def reference_policy(model: nn.Module, frozen_copy: nn.Module | None = None) -> Iterator[nn.Module]:
    """Lend the reference, in evaluation mode and without gradient: the policy without its adapter, or the frozen copy.

    On leaving, also by an exception, the policy is as it was: adapter on, each module in its own mode, each parameter
    with its own ``requires_grad``.

    Args:
        model: The policy.
        frozen_copy: The result of :func:`make_reference`.

    Raises:
        ValueError: The policy has no adapter, and no copy was given.
    """
    if frozen_copy is not None:
        with torch.no_grad():
            yield frozen_copy
        return
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ValueError("a policy without an adapter needs a frozen copy as its reference; make it by make_reference")
    training = [(module, module.training) for module in model.modules()]
    needs_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with ExitStack() as stack:
        # Runs last: PEFT sets requires_grad by its own rule when the adapter comes back.
        stack.callback(_restore, training, needs_grad)
        stack.enter_context(model.disable_adapter())
        stack.enter_context(torch.no_grad())
        model.eval()
        yield model


def _restore(training: list[tuple[nn.Module, bool]], needs_grad: list[tuple[nn.Parameter, bool]]) -> None:
    for module, mode in training:
        module.training = mode
    for parameter, flag in needs_grad:
        parameter.requires_grad_(flag)

"""Reference: the frozen start policy that the KL term is measured against."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import nn

from pact_lightning.policy.loading import Adapter


class StartWeights(nn.Module):
    """Trained weights of a policy that starts from an adapter, as they were at the start."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        trained = dict(model.named_parameters())
        self.values = nn.ParameterList(
            nn.Parameter(trained[name].detach().clone(), requires_grad=False) for name in self.names
        )


def make_reference(model: nn.Module, adapter: Adapter, *, started: bool = False) -> nn.Module | None:
    """Copy of the policy what the reference needs: an adapter that began as nothing is switched off instead [D].

    Args:
        model: The policy, before any training.
        adapter: What is trained.
        started: Whether its adapter has been trained before.

    Returns:
        The whole policy for ``full``; for ``lora`` and ``qlora`` the adapter's :class:`StartWeights`, or ``None`` for
        one that adds nothing yet.
    """
    if started and adapter != "full":
        return StartWeights(model)
    return deepcopy(model).eval().requires_grad_(False) if adapter == "full" else None


@contextmanager
def reference_policy(model: nn.Module, frozen_copy: nn.Module | None = None) -> Iterator[nn.Module]:
    """Lend the reference, in evaluation mode and without gradient: the frozen copy, or the policy with another adapter.

    That adapter is the one that the policy started from, or none.

    On leaving, also by an exception, the policy is as it was: adapter on, each module in its own mode, each parameter
    with its own ``requires_grad``.

    Args:
        model: The policy.
        frozen_copy: The result of :func:`make_reference`.

    Raises:
        ValueError: The policy has no adapter, and no copy was given.
    """
    if frozen_copy is not None and not isinstance(frozen_copy, StartWeights):
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
        if frozen_copy is None:
            stack.enter_context(model.disable_adapter())
        else:
            stack.enter_context(_swapped(model, frozen_copy))
        stack.enter_context(torch.no_grad())
        model.eval()
        yield model


@contextmanager
def _swapped(model: nn.Module, start: StartWeights) -> Iterator[None]:
    """Put the start's weights in the place of the present ones, which keep their gradients."""
    weights = dict(model.named_parameters())
    present = {name: weights[name].data for name in start.names}
    try:
        for name, value in zip(start.names, start.values, strict=True):
            weights[name].data = value.data
        yield
    finally:
        for name, data in present.items():
            weights[name].data = data


def _restore(training: list[tuple[nn.Module, bool]], needs_grad: list[tuple[nn.Parameter, bool]]) -> None:
    for module, mode in training:
        module.training = mode
    for parameter, flag in needs_grad:
        parameter.requires_grad_(flag)

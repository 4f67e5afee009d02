"""Activations in the host's memory between forward and backward."""

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


def offloaded_activations(model: nn.Module) -> saved_tensors_hooks:
    """A context in which what autograd keeps goes to the host's memory, pinned where the model is on a CUDA device.

    torch's ``save_on_cpu``, but for the weights: they stay on the device anyway, and every layer keeps its own [D].
    """
    weights = list(model.parameters())
    staying = {weight.untyped_storage().data_ptr() for weight in weights}
    hooks: Any = save_on_cpu(pin_memory=bool(weights) and weights[0].is_cuda)

    def pack(tensor: Tensor) -> Any:
        return tensor if tensor.untyped_storage().data_ptr() in staying else hooks.pack_hook(tensor)

    def unpack(packed: Any) -> Tensor:
        tensor: Tensor = packed if isinstance(packed, Tensor) else hooks.unpack_hook(packed)
        return tensor

    return saved_tensors_hooks(pack, unpack)

"""Memory savers: activations in host memory, and an allocator that keeps what training frees."""

import ctypes
import platform
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


def offloaded_activations(model: nn.Module) -> saved_tensors_hooks:
    """Return a context that keeps saved activations in host memory, pinned where the model is on a CUDA device.

    It is torch's ``save_on_cpu`` without the weights, which every layer saves too and which stay on the device anyway
    [D].
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


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's numbers for mallopt
_LARGEST_FROM_HEAP = 2**30
_GROW_BY = 2**26


def keep_freed_memory() -> bool:
    """Make glibc serve large tensors from its heap and never give the heap back [D].

    By default every tensor over 32 MiB is mapped anew, and each step pays a page fault for every 4 KiB of its
    activations. With this setting the process holds its peak memory until it ends.

    Returns:
        Whether the allocator took it; False where it is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Glibc before 2.35 refuses a threshold this large; without it, keeping the heap would gain nothing.
    if not mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_TOP_PAD, _GROW_BY))

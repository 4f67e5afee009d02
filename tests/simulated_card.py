"""A device that computes on the CPU, and refuses what a real one refuses: tensors of two devices in one operation.

It finds what a machine without a card would hide: ids, masks, weights or random generators left on the CPU. It says
nothing about a real card's kernels, their speed or their memory.
"""

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "card"
"""What torch is told that the device is called."""
aten = torch.ops.aten
_LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")
_BETWEEN = {aten.copy_.default, aten._to_copy.default}
"""What moves values from one device to another."""
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
"""Their indices may be on the CPU."""


class OnCard(Tensor):
    """A tensor that says that it is on the card."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        """Torch has none for subclasses."""
        return self.inner.tolist()

    def numpy(self, *, force=False):
        if force:
            return self.inner.numpy(force=True)
        raise TypeError("can't convert card:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol):
        """Files hold the values; Lightning reads them onto the CPU, as it does with those of a real card."""
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self):
        return f"OnCard({self.inner!r})"


def _run(func, args, kwargs):
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain form, which every device has
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_card = any(isinstance(tensor, OnCard) for tensor in tensors)
    device = kwargs.get("device")
    if device is not None:
        on_card_after = torch.device(device).type == NAME
    else:
        on_card_after = isinstance(args[0], OnCard) if func in _BETWEEN else on_card
    if on_card and func not in _BETWEEN:
        _refuse_other_devices(func, args if func not in _INDEXED else (args[0], *args[2:]), kwargs)
    given = {
        name: torch.device("cpu") if name == "device" and value is not None else value
        for name, value in kwargs.items()
        if name not in {"pin_memory", "non_blocking"}
    }
    inner = [tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnCard) else leaf, part) for part in (args, given)]
    if on_card_after and any(isinstance(leaf, torch.Generator) for leaf in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{func}: Expected a 'card' device type for generator but found 'cpu'")
    out = func(*inner[0], **inner[1])
    if not on_card_after:
        return out
    wrapped = tree_map(lambda leaf: OnCard(leaf) if type(leaf) is Tensor else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if on_card else wrapped


def _refuse_other_devices(func, args, kwargs):
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and not isinstance(leaf, OnCard) and leaf.ndim > 0:
            raise RuntimeError(
                f"{func}: Expected all tensors to be on the same device, but found at least two devices, card:0 and cpu"
            )


class _Accelerator(CPUAccelerator):
    def setup_device(self, device):
        assert device.type == NAME


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnCard(torch.empty(size, dtype=dtype))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnCard(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    inner = [tensor.inner if isinstance(tensor, OnCard) else tensor for tensor in (source, target)]
    inner[1].copy_(inner[0])
    return target


def add_card():
    """From here to the end of the process torch knows the device ``card``."""
    _setup_privateuseone_for_python_backend(NAME)
    _LIBRARY.impl("empty.memory_format", _empty)  # all else that makes tensors out of nothing fills such ones
    _LIBRARY.impl("empty_strided", _empty_strided)
    _LIBRARY.impl("_copy_from", _copy_from)


class CardStrategy(SingleDeviceStrategy):
    """For a Trainer: its module and batches are on the card."""

    def __init__(self):
        super().__init__(torch.device(NAME), accelerator=_Accelerator())

    def model_to_device(self):
        super().model_to_device()
        self.lightning_module.model.tie_weights()  # a real card keeps them; here moving makes new parameters

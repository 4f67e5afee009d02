"""Meta device: a counter of live bytes, and another device's attention kernels, for tensors without values.

On the meta device torch would write out all attention scores, as no real kernel does. So the kernel of the planned
device is called by its name, and torch's own rules tell what it saves for the backward pass.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pact_lightning.policy.attention.blockwise import BlockwisePlan
from pact_lightning.policy.attention.choice import AttentionChoice, AttentionPath, check_path, choose_path
from pact_lightning.policy.attention.plan import AttentionPlan, SharedPrefixPlan
from pact_lightning.policy.prefix_tree import BlockLayout

_OWN_COPIES = {torch.ops.aten.logsumexp.default: 1}
"""Copies of its input that an operation makes unseen: the exponentials that it adds up."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no types
    """Counter of live storages of one kind of device; a storage counts once, however many tensors share it [D].

    It is meant for the meta device, where any model runs in no time and in no memory. Real tensors are counted alike,
    and check the plan.

    Args:
        device_type: The kind of device.

    Attributes:
        now: Bytes alive.
        peak: Largest value of ``now`` since the last :meth:`mark`.
    """

    def __init__(self, device_type: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._device_type = device_type
        self._known: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that are there already, such as weights, and return their bytes."""
        before = self.now
        for tensor in tensors:
            self._see(tensor)
        self.peak = max(self.peak, self.now)
        return self.now - before

    def mark(self) -> None:
        """Start ``peak`` anew."""
        self.peak = self.now

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return 0  # .item() of a tensor without values
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        inside = _OWN_COPIES[func] * args[0].nbytes if func in _OWN_COPIES else 0
        self.peak = max(self.peak, self.now + inside)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known[key] = weakref.ref(storage, self._gone(key, size))
            self.now += size

    def _gone(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            del self._known[key]
            self.now -= size

        return forget


_PADDED_TO = 16
"""Multiple of elements at which CUDA's memory-efficient kernel wants the rows of a mask to begin."""


_GROUPED = ("grouped_mm", "_grouped_mm")
"""Products of a mixture of experts; without values torch knows them in bfloat16 alone, transformers in all types."""


class AttentionKernels(TorchFunctionMode):
    """Mode that sends attention on the meta device to the kernels of another device [D].

    Args:
        device_type: ``cpu`` or ``cuda``.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given = kwargs or {}
        if func is scaled_dot_product_attention and args[0].device.type == "meta":
            return _attend(self._device_type, *args, **given)
        if getattr(func, "__name__", "") in _GROUPED and args[0].device.type == "meta":
            offsets = given["offs"] if "offs" in given else args[2]
            return torch.ops.transformers.grouped_mm_fallback(args[0], args[1], offsets)
        return func(*args, **given)


class PlannedAttention(AttentionChoice):
    """Attention path of a run on the planned device, unchecked: there are no values to compare.

    Args:
        path: The recipe's setting.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        ValueError: The path is for another device.
    """

    def __init__(self, path: AttentionPath, device_type: str) -> None:
        check_path(path, device_type)
        super().__init__(choose_path(torch.device(device_type))[0] if path == "auto" else path)

    def plan(self, decoder: nn.Module, layouts: Sequence[BlockLayout], device: torch.device) -> AttentionPlan:
        """Make the plan of one forward."""
        del decoder
        # Both save queries, keys, values, outputs and log-sum-exps of all tokens, and nothing else.
        alike = self.path in ("blockwise", "flex")
        return BlockwisePlan(layouts) if alike else SharedPrefixPlan(layouts, device)


def run_backward(loss: Tensor) -> None:
    """Run ``loss.backward()`` with the modes on, also while checkpointed layers are computed anew."""
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _attend(  # noqa: PLR0917  # as torch's own function
    device_type: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend by the kernel that torch takes on a device."""
    aten = torch.ops.aten
    alike = query.shape[-1] == value.shape[-1]  # not in latent attention
    if device_type != "cuda" and not alike:  # torch has only its plain kernel for this
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if device_type != "cuda":  # this kernel always knows shared key heads
        bias = _as_bias(attn_mask, query)
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
        )[0]
    if alike and attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if enable_gqa and query.shape[1] != key.shape[1]:  # torch has only its plain kernel for this
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, _padded(attn_mask, query), True, dropout_p, is_causal, scale=scale
    )[0]


def _as_bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Make a bool mask one that is added to the scores, as torch does."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    zero, hidden = query.new_zeros(()), query.new_zeros(())
    return torch.where(mask, zero, hidden)


def _padded(mask: Tensor | None, query: Tensor) -> Tensor | None:
    bias = _as_bias(mask, query)
    if bias is None:
        return None
    columns = bias.shape[-1]
    if columns % _PADDED_TO:
        bias = torch.nn.functional.pad(bias, (0, -columns % _PADDED_TO))[..., :columns]
    return bias.expand(query.shape[0], query.shape[1], *bias.shape[-2:])

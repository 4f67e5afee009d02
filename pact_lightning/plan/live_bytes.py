"""How many bytes are alive at a time, counted while code runs on tensors without values."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_OWN_COPIES = {torch.ops.aten.logsumexp.default: 1}
"""Copies of its input that an operation makes inside, where they cannot be seen: the exponentials that it adds up."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no types
    """Counts the storages of one kind of device that are alive; each once, however many tensors look at it [D].

    Meant for the meta device, where any model runs in no time and in no memory; real tensors are counted alike, so that
    the one can be checked against the other.

    Args:
        device_type: Whose tensors are counted.

    Attributes:
        now: Bytes alive.
        peak: The most that ``now`` has been, since the last :meth:`mark`.
    """

    def __init__(self, device_type: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._device_type = device_type
        self._known: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Counts tensors that are there already, such as weights; returns their bytes."""
        before = self.now
        for tensor in tensors:
            self._see(tensor)
        self.peak = max(self.peak, self.now)
        return self.now - before

    def mark(self) -> None:
        """Begins a new stretch for ``peak``."""
        self.peak = self.now

    def __enter__(self) -> Self:
        """Begins to count."""
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return 0  # a tensor without values, asked for one
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

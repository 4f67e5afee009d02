"""Seconds of a phase, estimated from its operations and bytes and from the speed of a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pact_lightning.plan.lengths import Decoding, Passes
from pact_lightning.utils.clock import device_time

_PROBE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of a device.

    Attributes:
        flops: Operations per second in large products.
        bandwidth: Bytes per second that it reads.
        source: Origin of the figures, in words.
    """

    flops: float
    bandwidth: float
    source: str


def probe_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Measure a device by products of 1,024 x 1,024 (CUDA: 8,192) matrices, and by a sum over 256 MiB."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = _per_second(lambda: left @ right, device)
    buffer = torch.ones(2**26, device=device, dtype=torch.float32)
    sums = _per_second(buffer.sum, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
    return Speed(
        products * 2 * size**3, sums * buffer.nbytes, f"measured on {name}, {str(dtype).removeprefix('torch.')}"
    )


def _per_second(run: Callable[[], object], device: torch.device) -> float:
    run()
    times = 0
    started = device_time(device)
    while True:
        run()
        times += 1
        passed = device_time(device) - started
        if passed >= _PROBE_SECONDS:
            return times / passed


def phase_seconds(
    passes: Sequence[Passes], decoding: Decoding, speed: Speed, *, weight_bytes: int, cached_bytes: int
) -> dict[str, float]:
    """Return the seconds of each pass if only products and reading took time: a lower bound.

    A decoding step reads its weights and all cached keys and values, however few rows there are; it takes the longer of
    that and of its operations. Tools are left out, and so is the time that rows wait for each other.

    Args:
        passes: The passes of the phase.
        decoding: Its decoding steps.
        speed: The device's speed.
        weight_bytes: Bytes of the policy's weights that a decoding step reads.
        cached_bytes: Bytes of the keys and values that a decoding step reads, of a row on average.
    """
    seconds = {one.name: one.flops / speed.flops for one in passes}
    reading = decoding.steps * (weight_bytes + decoding.rows * cached_bytes) / speed.bandwidth
    return seconds | {"decode": max(seconds["decode"], reading)}

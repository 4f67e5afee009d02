"""A clock that waits for the device."""

import time

import torch


def device_time(device: torch.device) -> float:
    """Seconds of a running clock, once a device has done all that it was given; CUDA's calls return before that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

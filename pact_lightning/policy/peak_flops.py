"""What a GPU can do at most: dense bfloat16 products in its tensor cores, as its maker states it.

Lightning has such a table too, but some of its entries count sparse products, twice as many, or two cards in one.
"""

import torch

_TERA = 10**12

# By the words of its name. Those with more words come first: the first one whose words all occur counts.
_BFLOAT16_DENSE = {
    "RTX 6000 Ada": 364.2,
    "RTX 3090 Ti": 80.0,
    "H200 NVL": 835.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}
_WEAKER = {"Laptop", "D", "MIG"}
"""Words of devices that share a name with a stronger one."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a device.

    Returns:
        ``None`` for CPUs and for GPUs that the table does not have: an invented figure would be worse than none.
    """
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_of(name: str) -> float | None:
    """The same by the name that CUDA gives the device."""
    words = set(name.replace("-", " ").split())
    if words & _WEAKER:
        return None
    for known, teraflops in _BFLOAT16_DENSE.items():
        if set(known.split()) <= words:
            return teraflops * _TERA
    return None

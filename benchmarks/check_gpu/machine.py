"""Check that what the package builds on works on this machine."""

import importlib.util
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.check_gpu.child import Figures

_PACKAGES = (
    *("lightning", "transformers", "peft", "bitsandbytes", "accelerate", "torchmetrics", "jsonargparse"),
    *(
        "docstring_parser",
        "typeshed_client",
        "jsonschema",
        "referencing",
        "pydantic",
        "scipy",
        "rich",
        "regex",
        "psutil",
    ),
    *("psutil", "safetensors", "jinja2", "pytest", "pytest_timeout", "hypothesis", "pact_lightning"),
)


def run(figures: Figures) -> None:
    """Import every package, and run each kind of operation once."""
    device = torch.device("cuda" if figures.card else "cpu")
    for name in _PACKAGES:
        with figures.part(f"import {name}"):
            importlib.import_module(name)
    # TRL's part of qlora_4b and smollm2 alone need them.
    figures.note("missing", [name for name in ("trl", "datasets", "gguf") if importlib.util.find_spec(name) is None])
    if figures.card:
        figures.note("CUDA is available", torch.cuda.is_available())
        figures.note("device", torch.cuda.get_device_name())
        figures.note("CUDA of torch", torch.version.cuda)
        figures.note("compute capability", list(torch.cuda.get_device_capability()))
        free, total = torch.cuda.mem_get_info()
        figures.note("free memory of total, GiB", [round(free / 2**30, 1), round(total / 2**30, 1)])
    figures.note("C compiler", next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "none: Triton needs one"))
    with figures.part("products"):
        size = 8192 if figures.card else 256
        left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        figures.note("product in bfloat16, TFLOP/s", 2 * size**3 / _seconds(lambda: left @ right) / 1e12)
        buffer = torch.empty(2**28 if figures.card else 2**20, device=device)
        figures.note("copy, GB/s read and written", 8 * buffer.numel() / _seconds(buffer.clone) / 1e9)
    with figures.part("NF4"):
        _check_nf4(device)
    with figures.part("torch.compile"):
        began = time.perf_counter()
        values = torch.randn(1000, device=device)
        double: Callable[[Tensor], Tensor] = torch.compile(lambda tensor: (2 * tensor).relu() + 1)
        torch.testing.assert_close(double(values), (2 * values).relu() + 1)
        figures.note("first compilation, s", time.perf_counter() - began)
    if figures.card:
        with figures.part("pinned memory"):
            pinned = torch.empty(2**26, pin_memory=True)
            figures.note("to pinned memory, GB/s", 4 * 2**26 / _seconds(lambda: pinned.copy_(buffer[: 2**26])) / 1e9)


def _check_nf4(device: torch.device) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    make: Any = Linear4bit  # untyped
    torch.manual_seed(0)
    plain = nn.Linear(256, 512, bias=False)
    layer = make(256, 512, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    layer.to(device)
    for rows in (1, 7):  # one row has a kernel of its own
        inputs = torch.randn(rows, 256)
        exact, found = plain(inputs).detach(), layer(inputs.to(device)).detach().cpu()
        error = float((found - exact).norm() / exact.norm())
        if not error < 0.2:
            raise RuntimeError(f"a product with {rows} rows and 4-bit weights is off by {error:.2f} of its length")


def _seconds(run: Callable[[], Any]) -> float:
    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    run()
    wait()
    began = time.perf_counter()
    for _ in range(5):
        run()
    wait()
    return (time.perf_counter() - began) / 5

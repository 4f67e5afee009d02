"""Command ``python -m benchmarks.gpu``: QLoRA on a Qwen3-4B of random weights on a card, as a table and JSON lines.

Random weights of the true shape are right for time and memory, and wrong for anything else. ``--small`` runs the same
program on a tiny shape, on any machine, to see that it works.

One prompt a step, K = 8 rollouts, prompt 2k + trace 2k + response 4k:

- ``update_trace`` and ``update_prompt``: our forward and backward with the trace (and SFT), and without; TRL's GRPO
  loss on the same rollouts without a trace, as ``trl_update``, in the same run;
- ``shared_prefix``, by torch's attention in two calls and by FlexAttention, against the plain alternative ``rows``, at
  several lengths;
- ``head``: log-probabilities and their gradients by our chunks, by all logits at once, and by cut-cross-entropy where
  it is installed; with a frozen head and with a trained one;
- ``rollout``: sampled tokens per second of our sampler, as it is and with compiled layers, and of
  ``transformers.generate``.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from benchmarks.decode_vs_generate import with_compiled_layers
from benchmarks.flops import update_flops
from benchmarks.machine import machine
from benchmarks.row import Rounds, Timing, alternate
from benchmarks.update_case import TWO_MILLION, Lengths, UpdateCase
from pact_lightning.policy.attention.choice import AttentionPath
from pact_lightning.policy.attention.flex import FlexPlan
from pact_lightning.policy.flops import peak_flops
from pact_lightning.policy.logprobs import chunked_logprobs
from pact_lightning.policy.packing import PackingMode
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.training.pact_module import PACTModule

QWEN3_4B: dict[str, int] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
}
"""The published shape."""

_QLORA = {"adapter": "qlora", "lora_r": 16, "lora_alpha": 32, "gradient_checkpointing": True}


@dataclass(frozen=True)
class _Scale:
    sizes: dict[str, int]
    lengths: Lengths
    sweep: tuple[Lengths, ...]
    rows: int
    new_tokens: int


_FULL = _Scale(
    QWEN3_4B,
    Lengths(2048, 2048, 4096, 8),
    tuple(Lengths(length, length, length // 2, 8) for length in (512, 1024, 2048, 4096)),
    rows=64,
    new_tokens=256,
)
_SMALL = _Scale(TWO_MILLION, Lengths(256, 512, 64, 4), (Lengths(256, 512, 64, 4),), rows=8, new_tokens=8)


def main() -> None:
    """Measure, print a table, and write one object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny shape, on any machine")
    parser.add_argument("--out", type=Path, default=Path("build/bench_gpu.jsonl"))
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --small runs a tiny shape on the CPU")
    console, rows = Console(width=140), []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(_SMALL if given.small else _FULL, Path(folder), given.repeats):
            console.print(row)
            rows.append(row)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(row | {"machine": machine()}) + "\n" for row in rows), encoding="utf-8")
    console.print(_table(rows))


def measure(scale: _Scale, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the rows as they are measured: none is lost if a later one does not fit the card."""
    case = UpdateCase(scale.sizes, folder, scale.lengths, "bfloat16")
    for name, trace in (("update_trace", True), ("update_prompt", False)):
        module, update = case.ours(trace=trace, policy=_QLORA)
        yield _update_row(name, case, module, _timed(update, repeats))
        del module, update
        _free()
    with suppress(ImportError):
        yield from _trl(case, repeats)
    for lengths in scale.sweep:
        yield _shared_against_rows(UpdateCase(scale.sizes, folder, lengths, "bfloat16"), repeats)
        _free()
    for trained in (False, True):
        yield _head(scale, repeats, trained=trained)
        _free()
    yield from _rollouts(case, scale, repeats)


@dataclass(frozen=True)
class _Measured:
    timing: Timing
    peak: int | None


def _timed(run: Callable[[], Any], repeats: int) -> _Measured:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    timing = alternate({"it": run}, Rounds(repeats))["it"]
    return _Measured(timing, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None)


def _update_row(name: str, case: UpdateCase, module: PACTModule, measured: _Measured) -> dict[str, Any]:
    packs = case.packs(module)
    flops = update_flops(case.sizes, packs, case.head_tokens(module)) / measured.timing.median
    peak = peak_flops(module.device)
    tokens = sum(pack.tokens for pack in packs)
    return _row(name, measured, **vars(case.lengths), tokens_per_second=tokens / measured.timing.median) | {
        "tflops": flops / 1e12,
        "utilisation": None if peak is None else flops / peak,
    }


def _row(name: str, measured: _Measured, **settings: Any) -> dict[str, Any]:
    peak = None if measured.peak is None else measured.peak / 2**30
    return {
        "bench": name,
        "seconds": measured.timing.median,
        "spread": measured.timing.spread,
        "peak_gib": peak,
    } | settings


def _trl(case: UpdateCase, repeats: int) -> Iterator[dict[str, Any]]:
    module, _ = case.ours(trace=False, policy=_QLORA)
    group = case.group(module)
    del module
    _free()
    trainer, update = case.trl(group, qlora=True)
    tokens = case.lengths.samples * (case.lengths.prompt + case.lengths.response)
    try:
        measured = _timed(update, repeats)
    except torch.cuda.OutOfMemoryError:
        yield {"bench": "trl_update", "seconds": None, "spread": None, "peak_gib": None, "failed": "out of memory"}
    else:
        speed = tokens / measured.timing.median
        yield _row("trl_update", measured, **vars(case.lengths), tokens_per_second=speed)
    del trainer, update
    _free()


def _shared_against_rows(case: UpdateCase, repeats: int) -> dict[str, Any]:
    ways: dict[str, tuple[PackingMode, AttentionPath]] = {
        "rows": ("rows", "two_calls"),
        "two_calls": ("shared_prefix", "two_calls"),
    }
    if FlexPlan.available(_device()):
        ways["flex"] = ("shared_prefix", "flex")
    seconds: dict[str, float] = {}
    for name, (packing, attention) in ways.items():
        module, update = case.ours(trace=True, packing=packing, attention=attention, policy=_QLORA)
        found = _timed(update, repeats).timing.median
        if name != "flex" or module.attention.flex_taken:  # else it was the other path once more
            seconds[name] = found
        del module, update
        _free()
    best = min(seconds[name] for name in seconds if name != "rows")
    lengths = f"{case.lengths.prompt}+{case.lengths.trace}+{case.lengths.samples}x{case.lengths.response}"
    return {
        "bench": f"shared_prefix {lengths}",
        "seconds": best,
        "ratio": seconds["rows"] / best,
        "ways": seconds,
    }


def _head(scale: _Scale, repeats: int, *, trained: bool) -> dict[str, Any]:
    positions, vocabulary, width = scale.lengths.response * 2, scale.sizes["vocab_size"], scale.sizes["hidden_size"]
    hidden = torch.randn(positions, width, device=_device(), dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=_device()) * width**-0.5).to(torch.bfloat16).requires_grad_(trained)
    targets = torch.randint(vocabulary, (positions,), device=_device())
    ways: dict[str, Callable[[], Tensor]] = {
        "chunks": lambda: chunked_logprobs(hidden, weight, targets).logp,
        "all_logits": lambda: -cross_entropy((hidden @ weight.T).float(), targets, reduction="none"),
    }
    if torch.cuda.is_available():
        with suppress(ImportError):
            from cut_cross_entropy import linear_cross_entropy

            ways["cut_cross_entropy"] = lambda: (
                -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None)
            )
    inputs = [hidden, weight] if trained else [hidden]
    seconds: dict[str, float] = {}
    for name, logp in ways.items():

        def both(logp: Callable[[], Tensor] = logp) -> None:
            torch.autograd.grad(logp().sum(), inputs)

        with suppress(torch.cuda.OutOfMemoryError):
            seconds[name] = _timed(both, repeats).timing.median
        _free()
    name = f"head, {'trained' if trained else 'frozen'}, {positions:,} tokens"
    return {"bench": name, "seconds": seconds.get("chunks"), "ways": seconds}


def _rollouts(case: UpdateCase, scale: _Scale, repeats: int) -> Iterator[dict[str, Any]]:
    module, _ = case.ours(trace=False, policy=_QLORA)
    model: Any = module.model.eval()
    prompts = torch.randint(0, 1000, (scale.rows, case.lengths.prompt), generator=torch.Generator().manual_seed(1))
    tokens = scale.rows * scale.new_tokens

    def ours() -> None:
        sampler = TransformersSampler(model, [], SamplingConfig())
        sampler.submit([TurnRequest(row, ids, scale.new_tokens, row) for row, ids in enumerate(prompts.tolist())])
        ended: list[TurnOutput] = []
        while len(ended) < scale.rows:
            ended += sampler.step()

    def generate() -> None:
        make: Any = GenerationConfig  # untyped
        config = make(
            do_sample=True, top_k=0, max_new_tokens=scale.new_tokens, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        inputs = prompts.to(module.device)
        model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)

    for name, run in (("rollout", ours), ("generate", generate), ("rollout, compiled layers", ours)):
        if name.endswith("layers"):
            with_compiled_layers(model.get_base_model())
        with torch.no_grad():
            measured = _timed(run, repeats)
        speed = tokens / measured.timing.median
        yield _row(name, measured, rows=scale.rows, new_tokens=scale.new_tokens, tokens_per_second=speed)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _table(rows: list[dict[str, Any]]) -> Table:
    names = ("bench", "seconds", "peak_gib", "tokens_per_second", "tflops", "utilisation", "ratio")
    table = Table(*names, "seconds of every way", title=time.strftime("%Y-%m-%d"))
    for row in rows:
        ways = ", ".join(f"{name} {seconds:.3g}" for name, seconds in row.get("ways", {}).items())
        table.add_row(*(_cell(row.get(name)) for name in names), ways)
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

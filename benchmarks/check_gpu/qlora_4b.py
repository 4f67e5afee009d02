"""Check of a QLoRA on a Qwen3-4B of random weights: K = 8, prompt 2k, trace 2k, responses 4k."""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.check_gpu.child import Figures
from benchmarks.check_gpu.random_policy import QLORA, QWEN3_4B, random_base
from benchmarks.update_case import TWO_MILLION, Lengths, UpdateCase
from pact_lightning.policy.attention.choice import AttentionChoice, AttentionPath
from pact_lightning.policy.attention.flex import FlexPlan
from pact_lightning.policy.flops import FlopCount, Work, peak_flops
from pact_lightning.policy.loading import PolicyConfig, made_trainable, policy_skeleton
from pact_lightning.policy.logprobs import chunked_logprobs
from pact_lightning.policy.packing import PackingMode
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.utils.clock import device_time

_GIB = 2**30
_MOST_GIB = 24
_TOKENS = 12_288
"""Tokens of one forward, as in the recipe for 24 GB."""
_ROUNDS = 2


def run(figures: Figures) -> None:
    """Measure updates with and without a trace, every packing, TRL's update, and the head."""
    device = torch.device("cuda" if figures.card else "cpu")
    sizes = QWEN3_4B if figures.card else TWO_MILLION
    lengths = Lengths(2048, 2048, 4096, 8) if figures.card else Lengths(256, 512, 64, 2)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(sizes, Path(folder), lengths, "bfloat16", weights=False)
        began = device_time(device)
        config = PolicyConfig(model=folder, dtype="bfloat16", **QLORA)
        policy = made_trainable(random_base(folder, device), config)
        _free(device)
        figures.note("making the policy, s", device_time(device) - began)
        figures.note("weights, GiB", _allocated(device) / _GIB)
        with figures.part("update, trace"):
            module, update = case.ours(trace=True, policy=QLORA, loaded=policy, max_tokens=_TOKENS)
            peak = _update(figures, "with trace and SFT", case, module, update)
            if peak >= _MOST_GIB:
                raise RuntimeError(f"the update took {peak:.1f} GiB; it should fit a card of {_MOST_GIB}")
        with figures.part("plan"):
            figures.note("update with trace: planned peak, GiB", _planned(case, config, figures) / _GIB)
        with figures.part("update, prompt"):
            module, update = case.ours(trace=False, policy=QLORA, loaded=policy, max_tokens=_TOKENS)
            _update(figures, "prompt only", case, module, update)
        group = case.group(module)
        with figures.part("packings"):
            _packings(figures, case, policy)
        with figures.part("offloaded activations"):
            module, update = case.ours(trace=True, policy=QLORA, loaded=policy, max_tokens=_TOKENS)
            module.offload_activations = True
            _update(figures, "offloaded activations", case, module, update)
        del module, update, policy
        _free(device)
        with figures.part("head"):
            _head(figures, device, sizes, lengths)
        with figures.part("TRL"):
            _trl(figures, case, group, device)


def _update(figures: Figures, name: str, case: UpdateCase, module: PACTModule, update: Callable[[], float]) -> float:
    """Note time, speed, utilisation and peak of an update; return the peak in GiB."""
    with _peak(module.device) as peak:
        module.performance.start(module.model, module.device)
        seconds = _seconds(update, module.device)
    packs = case.packs(module)
    count = FlopCount.of(module.model)
    work = sum((count.of_pack(pack, 0) for pack in packs), Work(head_tokens=case.head_tokens(module)))
    rate = (count.forward(work) + count.backward(work)) / seconds
    best = peak_flops(module.device)
    parts = module.performance.clock.seconds
    figures.note(f"update, {name}: s", seconds)
    figures.note(f"update, {name}: s by part", {k: round(v / (_ROUNDS + 1), 3) for k, v in parts.items()})
    figures.note(f"update, {name}: tokens, forwards", [work.tokens, len(packs)])
    figures.note(f"update, {name}: tokens/s", work.tokens / seconds)
    figures.note(f"update, {name}: TFLOP/s", rate / 1e12)
    figures.note(f"update, {name}: utilisation", None if best is None else rate / best)
    figures.note(f"update, {name}: peak, GiB", peak[0])
    figures.note(f"update, {name}: flex taken", module.attention.flex_taken)
    return peak[0]


def _planned(case: UpdateCase, config: PolicyConfig, figures: Figures) -> int:
    from pact_lightning.cli.plan_recipe import read_recipe
    from pact_lightning.plan.lengths import Lengths as PlannedLengths
    from pact_lightning.plan.run_plan import make_plan

    lengths = case.lengths
    settings: dict[str, Any] = {
        "model.init_args.policy.model": str(case.folder),
        "model.init_args.coefficients.kl": 0.0,
        "model.init_args.coefficients.entropy": 0.0,
        "model.init_args.anchor_probability": 0.0,
        "model.init_args.head_chunk": 1024,
        "data.init_args.rollouts_per_prompt": lengths.samples,
        "data.init_args.limits.max_trajectory_tokens": lengths.response,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    recipe = read_recipe(["-c", "recipes/qwen3_4b_qlora_24gb.yaml", *arguments], "cuda" if figures.card else "cpu")
    planned = make_plan(
        recipe, policy_skeleton(config), PlannedLengths(lengths.prompt, lengths.trace, lengths.response)
    )
    return planned.memory.in_update


def _packings(figures: Figures, case: UpdateCase, policy: Any) -> None:
    """Note the seconds of an update by every way to pack and to attend, and compare their losses."""
    ways: dict[str, tuple[PackingMode, AttentionPath]] = {
        "rows": ("rows", "two_calls"),
        "two_calls": ("shared_prefix", "two_calls"),
    }
    module, update = case.ours(trace=True, policy=QLORA, loaded=policy, max_tokens=_TOKENS)
    if FlexPlan.available(module.device):
        ways["flex"] = ("shared_prefix", "flex")
    losses: dict[str, float] = {}
    for name, (packing, attention) in ways.items():
        module.packing, module.attention = packing, AttentionChoice(attention)
        losses[name] = update()
        taken = name != "flex" or module.attention.flex_taken
        with _peak(module.device) as peak:
            seconds = _seconds(update, module.device, warm=True)
        figures.note(f"update by {name}: s", seconds if taken else "flex was not taken")
        figures.note(f"update by {name}: peak, GiB", peak[0])
    figures.note("losses by way", losses)
    if max(losses.values()) - min(losses.values()) > 0.02 * max(1.0, abs(losses["rows"])):
        raise RuntimeError(f"the ways give different losses: {losses}")


def _head(figures: Figures, device: torch.device, sizes: dict[str, int], lengths: Lengths) -> None:
    positions, vocabulary, width = lengths.response * 2, sizes["vocab_size"], sizes["hidden_size"]
    hidden = torch.randn(positions, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16) * width**-0.5
    targets = torch.randint(vocabulary, (positions,), device=device)
    ways: dict[str, Callable[[], Tensor]] = {
        "in chunks": lambda: chunked_logprobs(hidden, weight, targets).logp,
        "all logits at once": lambda: -cross_entropy((hidden @ weight.T).float(), targets, reduction="none"),
    }
    for name, logp in ways.items():

        def both(logp: Callable[[], Tensor] = logp) -> None:
            torch.autograd.grad(logp().sum(), hidden)

        with _peak(device) as peak:
            seconds = _seconds(both, device)
        figures.note(f"head {name}, frozen, {positions:,} tokens: s, peak GiB", [seconds, peak[0]])


def _trl(figures: Figures, case: UpdateCase, group: Any, device: torch.device) -> None:
    base = random_base(str(case.folder), device, attention="sdpa")
    trainer, update = case.trl(group, qlora=True, loaded=base)
    lengths = case.lengths
    tokens = lengths.samples * (lengths.prompt + lengths.response)
    try:
        with _peak(device) as peak:
            seconds = _seconds(update, device)
    except torch.cuda.OutOfMemoryError:
        figures.note("update, TRL, prompt only", "out of memory on this card")
    else:
        figures.note("update, TRL, prompt only: s", seconds)
        figures.note("update, TRL, prompt only: tokens/s of plain rows", tokens / seconds)
        figures.note("update, TRL, prompt only: peak, GiB", peak[0])
    del trainer, update, base
    _free(device)


def _seconds(run: Callable[[], Any], device: torch.device, *, warm: bool = False) -> float:
    """Return the median seconds of some rounds, after one that does not count."""
    if not warm:
        run()
    found = []
    for _ in range(_ROUNDS):
        began = device_time(device)
        run()
        found.append(device_time(device) - began)
        print(f"   {found[-1]:.2f} s at {time.strftime('%H:%M:%S')}", flush=True)
    return statistics.median(found)


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """Yield a list that holds the peak of the block in GiB afterwards; 0 on a CPU."""
    found: list[float] = []
    _free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(torch.cuda.max_memory_allocated(device) / _GIB if device.type == "cuda" else 0.0)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()

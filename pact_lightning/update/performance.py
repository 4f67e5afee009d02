"""Cost of a phase: seconds by part, operations, utilisation, memory."""

import resource
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pact_lightning.credit.group import Group
from pact_lightning.policy.flops import FlopCount, Work, peak_flops
from pact_lightning.policy.packing import Pack
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.utils.clock import PARTS, Part, PhaseClock

_UPDATE: tuple[Part, ...] = ("old", "reference", "forward", "backward", "step")
_SAMPLING: tuple[Part, ...] = ("prefill", "decode")
_TERA = 10**12
_GIB = 2**30


class PhasePerformance:
    """The cost of the phase in work [D].

    Attributes:
        clock: Seconds by part.
    """

    def __init__(self) -> None:
        self.clock = PhaseClock()
        self._device = torch.device("cpu")
        self._peak: float | None = None
        self._count: FlopCount | None = None  # outside of a fit nothing is counted
        self._flops: dict[Part, int] = defaultdict(int)
        self._rollout_flops = 0
        self._update_tokens = self._row_tokens = 0

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Begin a phase."""
        self._device = device
        self._count = FlopCount.of(model)
        source: Any = model
        in_bfloat16 = source.get_input_embeddings().weight.dtype == torch.bfloat16
        self._peak = peak_flops(device) if in_bfloat16 else None
        self._flops.clear()
        self._rollout_flops = self._update_tokens = self._row_tokens = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.clock.start(device)

    def rollouts(self, groups: Sequence[Group], stats: RolloutStats) -> None:
        """Count the rollouts of the phase: each prompt once, and every token after it once per rollout."""
        self.clock.add("tools", stats.tool_seconds)
        if self._count is not None:
            count = self._count
            self._rollout_flops += count.forward(sum((_rollout_work(count, group) for group in groups), Work()))

    @contextmanager
    def forward(self, pack: Pack, masks: Sequence[Tensor], *, reference: bool) -> Iterator[None]:
        """Measure and count one forward: of the reference, of ``pi_old`` (without gradient), or of the update."""
        part: Part = "reference" if reference else "forward" if torch.is_grad_enabled() else "old"
        if self._count is not None:
            head_tokens = sum(int(mask.sum()) for mask in masks)
            work = self._count.of_pack(pack, head_tokens)
            self._flops[part] += self._count.forward(work, with_adapter=not reference)
            if part == "forward":
                self._flops["backward"] += self._count.backward(work)
                self._update_tokens += work.tokens
                self._row_tokens += pack.row_tokens
        with self.clock.measure(part):
            yield

    @staticmethod
    def names() -> frozenset[str]:
        """Return the names of :meth:`metrics`, those of a device whose peak is known among them."""
        rates = ("update_tokens_per_second", "update_tokens_shared", "update_mfu", "rollout_mfu")
        return frozenset((*PhasePerformance().metrics(), *(f"perf/{name}" for name in rates)))

    def metrics(self) -> dict[str, float]:
        """Return seconds as ``time/...``, and rates, memory and utilisation as ``perf/...``.

        Utilisation needs a device whose peak is known. ``perf/update_tokens_shared`` is the share of the tokens of
        plain rows that did not run again, since another row of the forward begins with them too.
        """
        seconds = self.clock.seconds
        metrics = {f"time/{part}": seconds.get(part, 0.0) for part in PARTS}
        metrics |= {"time/other": self.clock.other, "time/phase": self.clock.total}
        update = sum(seconds.get(part, 0.0) for part in _UPDATE)
        sampling = sum(seconds.get(part, 0.0) for part in _SAMPLING)
        if update:
            metrics["perf/update_tokens_per_second"] = self._update_tokens / update
        if self._row_tokens:
            metrics["perf/update_tokens_shared"] = 1 - self._update_tokens / self._row_tokens
        rates = {"update": _rate(sum(self._flops.values()), update), "rollout": _rate(self._rollout_flops, sampling)}
        for name, rate in rates.items():
            metrics[f"perf/{name}_tflops"] = rate / _TERA
            if self._peak is not None:
                metrics[f"perf/{name}_mfu"] = rate / self._peak
        return metrics | {"perf/peak_memory_gib": peak_memory(self._device) / _GIB}


def peak_memory(device: torch.device) -> int:
    """Return bytes: on CUDA the peak of tensors since the phase began, on a CPU the peak of this process ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def performance_line(phase: int, metrics: Mapping[str, float]) -> str:
    """Describe the cost of a phase in one line; parts that took no time are left out."""
    parts = [f"{name} {metrics[f'time/{name}']:.1f}" for name in (*PARTS, "other") if metrics[f"time/{name}"] >= 0.05]
    line = f"phase {phase} took {metrics['time/phase']:.1f} s" + (f": {', '.join(parts)}" if parts else "")
    if "perf/update_tokens_per_second" in metrics:
        used = f" ({metrics['perf/update_mfu']:.0%} of the device)" if "perf/update_mfu" in metrics else ""
        speed, teraflops = metrics["perf/update_tokens_per_second"], metrics["perf/update_tflops"]
        line += f"; update {speed:,.0f} tokens/s, {teraflops:.2f} TFLOP/s{used}"
    return f"{line}; peak memory {metrics['perf/peak_memory_gib']:.2f} GiB"


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def _rollout_work(count: FlopCount, group: Group) -> Work:
    """Sum a group's work: the prompt once, what follows once per rollout; the last sampled token is never fed."""
    work = Work()
    for number, trajectory in enumerate(group.trajectories):
        prompt = len(trajectory.prompt_ids)
        if number == 0:
            work += Work(prompt, 0, count.attention(prompt))
        fed = sum(len(segment.ids) for segment in trajectory.segments) - 1
        work += Work(fed, len(trajectory.sampled_logps), count.attention(fed, prompt))
    return work

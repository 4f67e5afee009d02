"""Choice among the shared-prefix attentions: by device, checked against plain rows, and by a timed trial."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from pact_lightning.policy.attention.blockwise import BlockwisePlan
from pact_lightning.policy.attention.flex import FlexPlan
from pact_lightning.policy.attention.plan import AttentionPlan, AttentionShape, SharedPrefixPlan
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.policy.prefix_tree import BlockLayout
from pact_lightning.utils.clock import device_time

AttentionPath = Literal["auto", "blockwise", "two_calls", "flex"]
"""``blockwise`` for CPUs, ``flex`` for CUDA, ``two_calls`` anywhere."""

_CHECKED_LAYOUT = ((7, (5, 3)), (4, (2,)))
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.1  # bfloat16 keeps 8 bits, and every layer rounds again
_COARSE_TRIAL_TOLERANCE = 0.4
"""For single vectors in bfloat16. Gradients of early queries are differences of large numbers, off by a tenth in any
kernel; a key block too few or too many is off by more than a half."""
_TRY_FLEX_FROM = 4096
"""Tokens of a pack from which ``auto`` tries FlexAttention; shorter ones would not repay its compilation."""
_ROUNDS = 3


def choose_path(device: torch.device) -> tuple[AttentionPath, str]:
    """Return the path that ``auto`` begins with, and the reason."""
    if device.type == "cpu" and BlockwisePlan.available():
        return "blockwise", "flash kernels for CPUs, no padding and no copies of the prefix"
    if device.type == "cpu":
        return "two_calls", "this torch has no flash kernel for CPUs that returns its log-sum-exp"
    return "two_calls", "torch's attention for this device, on any length"


def check_path(path: AttentionPath, device_type: str) -> None:
    """Check that a path is for a kind of device.

    Raises:
        ValueError: The path is unknown, or for another kind.
    """
    if path not in get_args(AttentionPath):
        raise ValueError(f"unknown attention {path!r}; use one of {', '.join(get_args(AttentionPath))}")
    for name, kind in (("blockwise", "cpu"), ("flex", "cuda")):
        if path == name and device_type != kind:
            raise ValueError(
                f"attention {name!r} is for {kind} devices, but the policy is on {device_type}; use 'auto'"
            )


def make_plan(
    layouts: Sequence[BlockLayout], device: torch.device, path: AttentionPath = "auto"
) -> BlockwisePlan | SharedPrefixPlan | FlexPlan:
    """Make the plan of one forward.

    Raises:
        ValueError: The path is unknown, or not for this device.
    """
    check_path(path, device.type)
    if path == "auto":
        path, _ = choose_path(device)
    if path == "blockwise":
        return BlockwisePlan(layouts)
    return FlexPlan(layouts, device) if path == "flex" else SharedPrefixPlan(layouts, device)


class AttentionChoice:
    """Attention path of a run: chosen, checked and logged at first use.

    The first path is compared with plain rows on a few tokens. On CUDA ``auto`` tries FlexAttention at the first long
    pack: one layer's attention of it, with gradients, is compared with the first path, and FlexAttention is taken where
    it is faster, or asked for. A path that differs or cannot run is left, with a warning.

    Args:
        path: The path, or ``auto``.
    """

    def __init__(self, path: AttentionPath = "auto") -> None:
        self.path: AttentionPath = path
        self._settled: AttentionPath | None = None
        self.flex_taken: bool | None = None
        """Whether FlexAttention was tried and is in use; ``None`` before it was tried."""

    def plan(self, decoder: nn.Module, layouts: Sequence[BlockLayout], device: torch.device) -> AttentionPlan:
        """Make the plan of one forward of a decoder.

        Raises:
            RuntimeError: No path gives what plain rows give.
            ValueError: The path is unknown, or not for this device.
        """
        if self._settled is None:
            check_path(self.path, device.type)
            self._settled = self._settle(decoder, device)
        tokens = sum(layout.tokens for layout in layouts)
        if self.path == "flex" or (self.path == "auto" and tokens >= _TRY_FLEX_FROM and FlexPlan.available(device)):
            if self.flex_taken is None:
                self.flex_taken = self._try_flex(decoder, layouts, device, self._settled)
            if self.flex_taken:
                return FlexPlan(layouts, device)
        return make_plan(layouts, device, self._settled)

    def _try_flex(
        self, decoder: nn.Module, layouts: Sequence[BlockLayout], device: torch.device, settled: AttentionPath
    ) -> bool:
        """Try FlexAttention and return whether it is taken from now on.

        The decoder is not run: processes that share its weights may meet their first long pack at different times.
        """
        source: Any = decoder
        dtype = source.get_input_embeddings().weight.dtype
        tokens, shape = sum(layout.tokens for layout in layouts), AttentionShape.of(decoder)
        try:
            known = try_attention(make_plan(layouts, device, settled), tokens, shape, dtype=dtype, device=device)
            flex = try_attention(FlexPlan(layouts, device), tokens, shape, dtype=dtype, device=device)
        except Exception as error:  # noqa: BLE001  # compilers raise errors of every kind; none is worth a run
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            rank_zero_warn(f"attention of long packs: {settled}, since flex failed on this device: {reason}")
            return False
        difference, allowed = flex.difference(known), _TOLERANCE.get(dtype, _COARSE_TRIAL_TOLERANCE)
        if not difference <= allowed:
            rank_zero_warn(
                f"attention of long packs: {settled}, since flex differs from it by {difference:.1e} on this device, "
                f"more than the allowed {allowed:.0e}"
            )
            return False
        times = f"{1000 * flex.seconds:.1f} ms a layer by flex, {1000 * known.seconds:.1f} by {settled}"
        taken = self.path == "flex" or flex.seconds < known.seconds
        reason = "asked for by the recipe" if self.path == "flex" else f"from {_TRY_FLEX_FROM:,} tokens on, tried once"
        rank_zero_info(
            f"attention of long packs: {'flex' if taken else settled} ({reason}); {times}, at {tokens:,} tokens"
        )
        return taken

    def _settle(self, decoder: nn.Module, device: torch.device) -> AttentionPath:
        if self.path in ("auto", "flex"):
            path, reason = choose_path(device)
        else:
            path, reason = self.path, "asked for by the recipe"
        for candidate in dict.fromkeys((path, "two_calls")):
            difference, allowed = _difference_from_rows(decoder, device, candidate)
            if difference <= allowed:
                rank_zero_info(f"packed rows use {candidate} attention ({reason}), checked against plain rows")
                return candidate
            reason = f"{candidate} differs from plain rows by {difference:.1e}, more than the allowed {allowed:.0e}"
            rank_zero_warn(f"attention of packed rows: {reason}")
        raise RuntimeError(f"packed rows do not work on this machine: {reason}; set packing: rows")


@torch.no_grad()
def _difference_from_rows(decoder: nn.Module, device: torch.device, path: AttentionPath) -> tuple[float, float]:
    """Return the largest difference between the states of a small pack and of its rows, and the largest allowed."""
    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        packed, plain = _small_pack(decoder, device, path)
    finally:
        for module, mode in modes:
            module.training = mode
    size = max(float(plain.abs().max()), 1e-6)
    return float((packed - plain).abs().max()) / size, _TOLERANCE.get(packed.dtype, _COARSE_TOLERANCE)


def _small_pack(decoder: nn.Module, device: torch.device, path: AttentionPath) -> tuple[Tensor, Tensor]:
    """Return the last hidden states at the reads of a small pack, ``[n, D]``, from the pack and from plain rows."""
    generator = torch.Generator().manual_seed(0)
    blocks = [
        Block(_ids(decoder, prefix, generator), [_ids(decoder, length, generator) for length in branches])
        for prefix, branches in _CHECKED_LAYOUT
    ]
    (pack,) = pack_blocks(blocks, 1000)
    states = decoder(  # [T, D]
        input_ids=pack.ids[None].to(device),
        position_ids=pack.positions[None].to(device),
        attention_plan=make_plan(pack.layouts, device, path),
        use_cache=False,
    ).last_hidden_state[0]
    packed = torch.cat([states[read.predictors.to(device)] for read in pack.reads])  # [n, D]
    plain = []
    for read in pack.reads:
        prefix, branch = torch.as_tensor(blocks[read.block].prefix), read.targets
        row = torch.cat([prefix, branch])[None].to(device)
        plain.append(decoder(input_ids=row, use_cache=False).last_hidden_state[0, len(prefix) - 1 : -1])
    return packed, torch.cat(plain)


def _ids(decoder: nn.Module, length: int, generator: torch.Generator) -> Tensor:
    tokens: int = decoder.config.vocab_size  # type: ignore[union-attr, assignment]  # a transformers model
    return torch.randint(tokens, (length,), generator=generator)


@dataclass(frozen=True, slots=True)
class AttentionTrial:
    """Trial of one layer's attention.

    Attributes:
        seconds: Median time of a forward and a backward pass, without the first, which may compile.
        results: The output, and the gradients of query, key and value, on the CPU; the last dimension is a token's.
    """

    seconds: float
    results: tuple[Tensor, ...]

    def difference(self, other: "AttentionTrial") -> float:
        """Return the largest error of any token's vector, as a share of that vector's length in the other trial.

        A token that sees many keys has short vectors, whose errors would not show beside the longest vector. Lengths
        below the median count as the median, since the first token's query has no gradient at all.

        Returns:
            Infinity where anything is not finite.
        """
        found = 0.0
        for ours, theirs in zip(self.results, other.results, strict=True):
            length = theirs.float().norm(dim=-1)  # of each token in each head
            error = (ours.float() - theirs.float()).norm(dim=-1) / length.clamp(min=float(length.median()))
            if not bool(error.isfinite().all()):
                return math.inf
            found = max(found, float(error.max()))
        return found


def try_attention(
    plan: AttentionPlan, tokens: int, shape: AttentionShape, *, dtype: torch.dtype, device: torch.device
) -> AttentionTrial:
    """Attend in one layer several times, forward and backward, with the same random values for every plan.

    Args:
        plan: The plan to try.
        tokens: Tokens of the flat row that the plan was made for.
        shape: Of the decoder.
        dtype: Of its activations.
        device: Where it runs.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        return torch.randn(1, tokens, heads, shape.head_dim, generator=generator).to(device, dtype)

    # In the memory layout of a model's projections.
    leaves = [drawn(heads).transpose(1, 2).requires_grad_() for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    upstream = drawn(shape.heads)

    def attend() -> Tensor:
        return plan.attend(nn.Identity(), *leaves, scaling=shape.head_dim**-0.5)

    seconds: list[float] = []
    found: tuple[Tensor, ...] = ()
    with torch.no_grad():
        attend()  # a forward without a backward pass is compiled apart
    with torch.enable_grad():
        for _ in range(1 + _ROUNDS):
            start = device_time(device)
            out = attend()
            found = (out.detach(), *torch.autograd.grad(out, leaves, upstream))
            seconds.append(device_time(device) - start)
    return AttentionTrial(statistics.median(seconds[1:]), tuple(tensor.cpu() for tensor in found))

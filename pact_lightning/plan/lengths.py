"""Lengths of prompts and rollouts, packs of an optimiser step, and the figures of a phase."""

from dataclasses import dataclass
from itertools import count, islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pact_lightning.policy.packing import PREFIX, Block, Pack, PackingMode, pack_blocks

TraceLayout = Literal["shared", "branch", "apart"]
"""Place of a trace in a prompt's blocks; see :func:`pact_lightning.update.layout.lay_out`."""
Context = Literal["trace", "prompt"]
"""Context of rollouts that were sampled with the trace in their prompt."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt, its trace and its rollouts, alike for all prompts.

    Attributes:
        prompt: Tokens of ``x``.
        trace: Tokens of ``h*``; 0 for tasks without traces.
        trajectory: Tokens of a rollout after the prompt, observations included.
        sampled_share: Share of these that the policy samples.
        shared: Tokens that all prompts begin with alike, such as the system turn with its tools.

    Raises:
        ValueError: A value makes no sense.
    """

    prompt: int
    trace: int
    trajectory: int
    sampled_share: float = 1.0
    shared: int = 0

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.trajectory < 1 or self.trace < 0:
            raise ValueError(
                f"a plan needs a prompt and a trajectory of at least one token and a trace of at least none, not "
                f"{self.prompt}, {self.trajectory} and {self.trace}"
            )
        if not 0 < self.sampled_share <= 1:
            raise ValueError(f"the sampled share must be above 0 and at most 1, not {self.sampled_share:g}")
        if not 0 <= self.shared <= self.prompt:
            raise ValueError(f"prompts of {self.prompt} tokens cannot begin with {self.shared} that all of them share")

    @property
    def sampled(self) -> int:
        """Tokens of a rollout that the policy samples."""
        return max(1, round(self.trajectory * self.sampled_share))


@dataclass(frozen=True, slots=True)
class StepShape:
    """Work of one optimiser step.

    Attributes:
        prompts: Prompts of the step.
        privileged: Number of them that are scored with their trace.
        rollouts: Rollouts of each.
        max_tokens: Tokens of one forward.
        packing: Packing mode.
        trace_layout: Place of the trace.
        read_trace: Whether there is an SFT term.
        off_spec_rollouts: Of these rollouts, those that were sampled with the trace in their prompt.
        off_spec_contexts: Contexts in which they are scored.
    """

    prompts: int
    privileged: int
    rollouts: int
    max_tokens: int
    packing: PackingMode
    trace_layout: TraceLayout = "shared"
    read_trace: bool = True
    off_spec_rollouts: int = 0
    off_spec_contexts: tuple[Context, ...] = ("trace",)


@dataclass(frozen=True, slots=True)
class PlannedPack:
    """Pack with the tokens at which the head runs.

    Attributes:
        pack: The pack; its token ids mean nothing.
        masks: For each of its reads a mask ``[R]``, True at tokens that go through the head.
    """

    pack: Pack
    masks: list[Tensor]

    @property
    def head_tokens(self) -> int:
        """Tokens that go through the head."""
        return sum(int(mask.sum()) for mask in self.masks)


def step_packs(step: StepShape, lengths: Lengths) -> list[PlannedPack]:
    """Lay out and pack one optimiser step as training does."""
    blocks: list[Block] = []
    sampled: list[dict[int, int]] = []  # scored tokens by block and branch, at the end of each

    fresh = count(lengths.shared)  # ids that no other token has, so that nothing else is shared

    def ids(length: int) -> npt.NDArray[np.int64]:
        return np.fromiter(islice(fresh, length), dtype=np.int64, count=length)

    def add(prefix: npt.NDArray[np.int64], branches: list[tuple[int, int]], read_prefix: int = 0) -> None:
        if not branches and not read_prefix:
            return
        blocks.append(Block(prefix, [ids(length) for length, _ in branches], read_prefix=read_prefix > 0))
        sampled.append({PREFIX: read_prefix} | {n: scored for n, (_, scored) in enumerate(branches)})

    off_spec = [(lengths.trajectory, lengths.sampled)] * (step.off_spec_rollouts if lengths.trace else 0)
    rollouts = [(lengths.trajectory, lengths.sampled)] * (step.rollouts - len(off_spec))
    trace = [(lengths.trace, lengths.trace)]

    def new_prompt() -> npt.NDArray[np.int64]:
        return np.concatenate([np.arange(lengths.shared), ids(lengths.prompt - lengths.shared)])

    for number in range(step.prompts):
        with_trace = number < step.privileged and lengths.trace > 0
        prompt = new_prompt()
        if not with_trace:
            add(prompt, rollouts)
        elif step.trace_layout == "branch":
            add(prompt, rollouts + trace if step.read_trace else rollouts)
        elif step.trace_layout == "shared" and step.read_trace:
            add(np.concatenate([prompt, ids(lengths.trace)]), rollouts, lengths.trace)
        else:
            add(np.concatenate([prompt, ids(lengths.trace)]), rollouts)
            if step.read_trace:  # how much of the prompt stands before the quoted trace is not known here
                add(new_prompt(), trace)
        for context in step.off_spec_contexts if off_spec else ():
            add(np.concatenate([new_prompt(), ids(lengths.trace)]) if context == "trace" else prompt, off_spec)
    packs = pack_blocks(blocks, step.max_tokens, step.packing)
    return [
        PlannedPack(pack, [_last(len(read.targets), sampled[read.block][read.branch]) for read in pack.reads])
        for pack in packs
    ]


def fullest(packs: list[PlannedPack]) -> PlannedPack:
    """Return the pack with the most tokens."""
    return max(packs, key=lambda planned: planned.pack.tokens)


def _last(length: int, scored: int) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[length - scored :] = True
    return mask


@dataclass(frozen=True, slots=True)
class Passes:
    """One kind of pass over a phase.

    Attributes:
        name: Its name.
        forwards: Calls of the model.
        tokens: Tokens that go through it.
        flops: Operations.
    """

    name: str
    forwards: int
    tokens: int
    flops: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """Steps in which all rows advance by a token.

    Attributes:
        steps: Number of steps, if every row is always taken.
        cached: Tokens that a row has cached on average.
        rows: Rows at a time.
    """

    steps: int
    cached: int
    rows: int

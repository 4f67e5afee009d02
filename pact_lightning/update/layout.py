"""Scoring jobs laid out as blocks: what runs forward for a prompt's rollouts and its trace.

A block is a prefix with branches that attend to it and not to each other. With the trace as real turns the block
``[x | h* | tau_1 | ... | tau_K]`` serves the trace-conditioned surrogate and the SFT term in one forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pact_lightning.credit.group import Group
from pact_lightning.policy.packing import PREFIX, Block, Pack, Read
from pact_lightning.update.context import PrivilegedContext

RatioContext = Literal["trace", "prompt", "cross"]


@dataclass(frozen=True, slots=True)
class ScoringJob:
    """The scoring of one prompt of a batch, or of some of its rollouts.

    Attributes:
        group: The group.
        context: Its privileged context; ``None`` for an anchored prompt.
        prompt: Tokens of ``x``.
        ratio_context: Context in which its rollouts are scored.
        with_rollouts: Whether its rollout terms are needed.
        sft_weights: ``m_n`` of the trace's tokens, ``[N]``; ``None`` without an SFT term.
        rollouts: Indices of the rollouts that it scores.
        part: Number of the job among those of its prompt.
        off_spec: Whether its rollouts were sampled under ``c^h``.
        again: Whether another job of the prompt scores the same rollouts before it, in another context.
    """

    group: Group
    context: PrivilegedContext | None
    prompt: npt.NDArray[np.int64]
    ratio_context: RatioContext
    with_rollouts: bool
    sft_weights: Tensor | None
    rollouts: tuple[int, ...]
    part: int = 0
    off_spec: bool = False
    again: bool = False

    @property
    def samples(self) -> int:
        """Number of rollouts of the whole group, K."""
        return len(self.group.trajectories)

    @property
    def under_trace(self) -> bool:
        """True if the rollouts are scored under ``c^h``."""
        return self.context is not None and self.ratio_context != "prompt"

    @property
    def old_is_sampled(self) -> bool:
        """True if the ratio's denominator is the distribution that was sampled from."""
        return self.off_spec or self.context is None or self.ratio_context != "trace"


def in_other_context(job: ScoringJob) -> ScoringJob | None:
    """Return the scoring of the same rollouts in the context that the job does not score them in.

    That is ``c^h`` for rollouts scored under ``x``, and ``x`` for those scored under ``c^h``; ``None`` where
    there is no trace, or no rollout to score.
    """
    if job.context is None or not job.with_rollouts:
        return None
    return replace(job, ratio_context="prompt" if job.under_trace else "trace", sft_weights=None)


@dataclass(frozen=True, slots=True)
class Scored:
    """The meaning of a read of a pack: rollout ``sample`` of a job, or its trace where ``sample`` is ``None``."""

    job: int
    sample: int | None
    temperature: float = 1.0  # of a trace: eq. 9 has plain pi_theta


@dataclass(frozen=True, slots=True)
class ScoringBlocks:
    """The blocks of a batch, with the meaning of their branches.

    Attributes:
        blocks: The blocks to pack.
        meaning: The meaning of each read, by block and branch.
        trace_offset: Tokens of a read prefix before the trace, by block.
    """

    blocks: list[Block]
    meaning: dict[tuple[int, int], Scored]
    trace_offset: dict[int, int]

    def scored(self, read: Read) -> Scored:
        """Return the meaning of a read."""
        return self.meaning[read.block, read.branch]

    def offset(self, read: Read) -> int:
        """Return the number of tokens of a read before the first that is scored."""
        return self.trace_offset.get(read.block, 0) if read.branch == PREFIX else 0


def lay_out(jobs: Sequence[ScoringJob]) -> ScoringBlocks:
    """Lay the prompts of a batch out as blocks: one per prompt wherever trace and rollouts can share a prefix.

    Under the prompt, ``h*`` is one more branch beside the rollouts. A quoted or shortened trace needs a block of its
    own for SFT. What different blocks begin with alike is found by packing.
    """
    found = ScoringBlocks([], {}, {})
    for number, job in enumerate(jobs):
        scored = job.rollouts if job.with_rollouts else ()
        rollouts = [job.group.trajectories[sample].ids() for sample in scored]
        samples = [Scored(number, sample, job.group.temperature) for sample in scored]
        trace = Scored(number, None)
        context = job.context
        if context is None or job.sft_weights is None:
            prefix = context.ids if context is not None and job.under_trace else job.prompt
            _add(found, prefix, rollouts, samples)
        elif job.under_trace and context.shared:
            _add(found, context.ids, rollouts, samples, read_trace=(trace, len(context.prompt) - 1))
        elif job.under_trace:
            _add(found, context.ids, rollouts, samples)
            _add(found, context.prompt, [context.target.ids], [trace])
        else:
            _add(found, context.prompt, [*rollouts, context.target.ids], [*samples, trace])
    return found


def _add(
    found: ScoringBlocks,
    prefix: npt.NDArray[np.int64],
    branches: list[npt.NDArray[np.int64]],
    meaning: list[Scored],
    read_trace: tuple[Scored, int] | None = None,
) -> None:
    if not branches and read_trace is None:
        return
    index = len(found.blocks)
    found.blocks.append(Block(prefix, branches, read_prefix=read_trace is not None))
    for branch, scored in enumerate(meaning):
        found.meaning[index, branch] = scored
    if read_trace is not None:
        found.meaning[index, PREFIX], found.trace_offset[index] = read_trace


def head_masks(
    jobs: Sequence[ScoringJob], blocks: ScoringBlocks, pack: Pack, *, with_traces: bool = True
) -> list[Tensor]:
    """Mark, for every read of a pack, the tokens at which the head has to run: policy tokens, weighted trace tokens.

    Args:
        jobs: The scoring of the batch.
        blocks: Its blocks.
        pack: One of their packs.
        with_traces: Whether traces are scored; the reference has a share in rollouts only.

    Returns:
        A mask ``[R]`` for every read.
    """
    masks = []
    for read in pack.reads:
        scored = blocks.scored(read)
        job = jobs[scored.job]
        if scored.sample is not None:
            masks.append(job.group.policy_mask(scored.sample))
            continue
        assert job.sft_weights is not None
        mask = torch.zeros(len(read.targets), dtype=torch.bool)  # [R]
        if with_traces:
            mask[blocks.offset(read) :] = job.sft_weights > 0
        masks.append(mask)
    return masks

"""From groups to forwards: which blocks a prompt needs, and its log-probabilities under the context of its ratio."""

from collections.abc import Sequence
from dataclasses import dataclass
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
class PromptPlan:
    """What one prompt of a batch needs to be scored.

    Attributes:
        group: The group.
        context: Its privileged context; ``None`` for an anchored prompt.
        prompt: Tokens of ``x``.
        ratio_context: Context in which its rollouts are scored.
        with_rollouts: Its rollout terms are needed.
        sft_weights: ``m_n`` of the trace's tokens, ``[N]``; ``None`` without an SFT term.
    """

    group: Group
    context: PrivilegedContext | None
    prompt: npt.NDArray[np.int64]
    ratio_context: RatioContext
    with_rollouts: bool
    sft_weights: Tensor | None

    @property
    def samples(self) -> int:
        """K."""
        return len(self.group.trajectories)

    @property
    def old_under_prompt(self) -> bool:
        """Whether the ratio's denominator is ``pi_old(. | x)``, the distribution that was sampled from."""
        return self.context is None or self.ratio_context != "trace"


@dataclass(frozen=True, slots=True)
class Scored:
    """What a read of a pack stands for: rollout ``sample`` of a plan, or (``sample`` is ``None``) its trace."""

    plan: int
    sample: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a batch and what their branches are.

    Attributes:
        blocks: What to pack.
        meaning: By block and branch index, what a read of it is.
        trace_offset: By block, how many tokens of a read prefix come before the trace.
    """

    blocks: list[Block]
    meaning: dict[tuple[int, int], Scored]
    trace_offset: dict[int, int]

    def scored(self, read: Read) -> Scored:
        """What a read stands for."""
        return self.meaning[read.block, read.branch]

    def offset(self, read: Read) -> int:
        """Tokens of the read that come before what is scored."""
        return self.trace_offset.get(read.block, 0) if read.branch == PREFIX else 0


def lay_out(plans: Sequence[PromptPlan]) -> Layout:
    """Lays the prompts of a batch out as blocks: one per prompt wherever trace and rollouts can share a prefix.

    ``[x | h* | tau_1 .. tau_K]`` serves trace-conditioned RL and SFT at once; under the prompt, ``h*`` is one more
    branch beside the rollouts; a quoted or shortened trace needs a block of its own for SFT.
    """
    layout = Layout([], {}, {})
    for number, plan in enumerate(plans):
        rollouts = [trajectory.ids() for trajectory in plan.group.trajectories] if plan.with_rollouts else []
        samples = [Scored(number, sample) for sample in range(len(rollouts))]
        trace = Scored(number, None)
        context = plan.context
        under_trace = context is not None and plan.ratio_context != "prompt"
        if context is None or plan.sft_weights is None:
            prefix = context.ids if context is not None and under_trace else plan.prompt
            _add(layout, prefix, rollouts, samples)
        elif under_trace and context.shared:
            _add(layout, context.ids, rollouts, samples, read_trace=(trace, len(context.prompt) - 1))
        elif under_trace:
            _add(layout, context.ids, rollouts, samples)
            _add(layout, context.prompt, [context.target.ids], [trace])
        else:
            _add(layout, context.prompt, [*rollouts, context.target.ids], [*samples, trace])
    return layout


def _add(
    layout: Layout,
    prefix: npt.NDArray[np.int64],
    branches: list[npt.NDArray[np.int64]],
    meaning: list[Scored],
    read_trace: tuple[Scored, int] | None = None,
) -> None:
    if not branches and read_trace is None:
        return
    index = len(layout.blocks)
    layout.blocks.append(Block(prefix, branches, read_prefix=read_trace is not None))
    for branch, scored in enumerate(meaning):
        layout.meaning[index, branch] = scored
    if read_trace is not None:
        layout.meaning[index, PREFIX], layout.trace_offset[index] = read_trace


def head_masks(plans: Sequence[PromptPlan], layout: Layout, pack: Pack) -> list[Tensor]:
    """For every read of a pack, at which tokens the head has to run, ``[R]``: policy tokens, weighted trace tokens."""
    masks = []
    for read in pack.reads:
        scored = layout.scored(read)
        plan = plans[scored.plan]
        if scored.sample is not None:
            masks.append(plan.group.policy_mask(scored.sample))
            continue
        assert plan.sft_weights is not None
        mask = torch.zeros(len(read.targets), dtype=torch.bool)
        mask[layout.offset(read) :] = plan.sft_weights > 0
        masks.append(mask)
    return masks

"""What a phase computes: tokens, forward passes, operations."""

from collections.abc import Sequence
from dataclasses import dataclass

from pact_lightning.plan.lengths import Lengths, PlannedPack
from pact_lightning.policy.flops import FlopCount, Work, attended_pairs, causal_pairs


@dataclass(frozen=True, slots=True)
class PhaseSize:
    """How much a phase does.

    Attributes:
        steps: Optimiser steps.
        prompts: Prompts.
        rollouts: Rollouts of each.
        rows: Rollouts in work at the same time.
        with_old: Whether ``pi_old`` is taken before the first step.
        with_reference: Whether there is a KL term.
    """

    steps: int
    prompts: int
    rollouts: int
    rows: int
    with_old: bool
    with_reference: bool


@dataclass(frozen=True, slots=True)
class Passes:
    """One kind of pass over a phase.

    Attributes:
        name: Which.
        forwards: How often the model is called.
        tokens: Tokens that go through it.
        flops: Operations.
    """

    name: str
    forwards: int
    tokens: int
    flops: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """The steps in which all rows advance by a token.

    Attributes:
        steps: How many, if every place is always taken.
        cached: Tokens that a row has cached on average.
        rows: Rows in work.
    """

    steps: int
    cached: int
    rows: int


def phase_passes(
    count: FlopCount,
    size: PhaseSize,
    lengths: Lengths,
    packs: Sequence[PlannedPack],
    correction: Sequence[PlannedPack] = (),
) -> list[Passes]:
    """The passes of a phase, in the order in which it makes them.

    Args:
        count: The policy's weights.
        size: How much the phase does.
        lengths: How long things are.
        packs: Those of one optimiser step.
        correction: Those of a whole phase that are run for ``importance_cap``.
    """
    rollouts = size.prompts * size.rollouts
    sampled = rollouts * lengths.sampled
    observed = rollouts * (lengths.trajectory - lengths.sampled)
    prompts = Work(size.prompts * lengths.prompt, size.prompts, size.prompts * causal_pairs(lengths.prompt))
    after = rollouts * causal_pairs(lengths.trajectory, lengths.prompt)
    share = round(after * lengths.sampled / lengths.trajectory)
    prefill = prompts + Work(observed, 0, after - share)
    update = sum((_work(planned) for planned in packs), Work())
    forwards, tokens = size.steps * len(packs), size.steps * update.tokens
    passes = [
        Passes("prefill", 0, prefill.tokens, count.forward(prefill)),
        Passes("decode", decoding(size, lengths).steps, sampled, count.forward(Work(sampled, sampled, share))),
    ]
    if size.with_old:
        passes.append(Passes("old", forwards, tokens, size.steps * count.forward(update)))
    if correction:
        by_prompt = sum((_work(planned) for planned in correction), Work())
        passes.append(Passes("old, prompt only", len(correction), by_prompt.tokens, count.forward(by_prompt)))
    if size.with_reference:
        flops = size.steps * count.forward(update, with_adapter=False)
        passes.append(Passes("reference", forwards, tokens, flops))
    passes.append(Passes("forward", forwards, tokens, size.steps * count.forward(update)))
    passes.append(Passes("backward", forwards, tokens, size.steps * count.backward(update)))
    return passes


def decoding(size: PhaseSize, lengths: Lengths) -> Decoding:
    """How the rollouts of a phase are decoded."""
    rollouts = size.prompts * size.rollouts
    rows = min(size.rows, rollouts)
    return Decoding(-(-rollouts // rows) * lengths.sampled, lengths.prompt + lengths.trajectory // 2, rows)


def _work(planned: PlannedPack) -> Work:
    return Work(planned.pack.tokens, planned.head_tokens, attended_pairs(planned.pack.layouts))

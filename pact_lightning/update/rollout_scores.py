"""Log-probabilities of a batch's rollouts without gradient: under ``pi_old``, or in the other context."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from pact_lightning.credit.group import Group
from pact_lightning.policy.logprobs import LogProbs
from pact_lightning.policy.packing import Pack, PackingMode, pack_blocks
from pact_lightning.update.gradient import Updated, idle_forwards
from pact_lightning.update.layout import ScoringBlocks, ScoringJob, in_other_context, lay_out


class Score(Protocol):
    """One forward: the log-probabilities of every read of a pack, each ``[R]``."""

    def __call__(
        self, pack: Pack, jobs: Sequence[ScoringJob], blocks: ScoringBlocks, *, keep_hidden: bool = False
    ) -> list[LogProbs]:
        """Score a pack; ``keep_hidden`` as in :func:`~pact_lightning.policy.logprobs.token_logprobs`."""
        ...


def of_denominator(job: ScoringJob) -> ScoringJob:
    """Return the scoring of the same rollouts in the context of the ratio's denominator."""
    if job.off_spec:
        return replace(job, ratio_context="trace", sft_weights=None)
    return replace(job, context=None if job.ratio_context == "cross" else job.context, sft_weights=None)


def of_prompt(job: ScoringJob) -> ScoringJob:
    """Return the scoring of the same rollouts under the prompt alone."""
    return replace(job, context=None, sft_weights=None)


class RolloutScorer:
    """Scorer of rollouts by the present weights, without gradient. All processes have to call it together.

    Args:
        module: The module in training.
        score: Makes a forward.
        max_tokens: Tokens of one forward.
        packing: ``shared_prefix`` or ``rows``.
    """

    def __init__(self, module: Updated, score: Score, max_tokens: int, packing: PackingMode) -> None:
        self._module = module
        self._score = score
        self._max_tokens = max_tokens
        self._packing: PackingMode = packing

    def keep(self, name: Literal["old_logps", "prompt_logps"], jobs: Sequence[ScoringJob]) -> None:
        """Score the rollouts of groups that lack these log-probabilities, and put them into the groups.

        Args:
            name: Where they go.
            jobs: The scoring of all rollouts of some groups.
        """
        missing = [job for job in jobs if getattr(job.group, name) is None]
        scores = self._scores(missing)
        found: dict[int, tuple[Group, dict[int, Tensor]]] = {}
        for number, job in enumerate(missing):
            of_group = found.setdefault(id(job.group), (job.group, {}))[1]
            of_group.update((sample, scores[number, sample].logp) for sample in job.rollouts)
        for group, by_sample in found.values():
            setattr(group, name, [by_sample[sample] for sample in range(len(group.trajectories))])

    def in_other_context(
        self, jobs: Sequence[ScoringJob], *, keep_hidden: bool = False
    ) -> dict[tuple[int, int], LogProbs]:
        """Score the rollouts in the context that their job does not score them in, by job and rollout."""
        others = {number: other for number, job in enumerate(jobs) if (other := in_other_context(job)) is not None}
        numbers = list(others)
        scores = self._scores(list(others.values()), keep_hidden=keep_hidden)
        return {(numbers[place], sample): score for (place, sample), score in scores.items()}

    @torch.no_grad()
    def _scores(self, jobs: Sequence[ScoringJob], *, keep_hidden: bool = False) -> dict[tuple[int, int], LogProbs]:
        blocks = lay_out(jobs)
        found: dict[tuple[int, int], LogProbs] = {}
        packs = pack_blocks(blocks.blocks, self._max_tokens, self._packing)
        idle = idle_forwards(self._module, len(packs))
        for pack in packs:
            for read, score in zip(pack.reads, self._score(pack, jobs, blocks, keep_hidden=keep_hidden), strict=True):
                scored = blocks.scored(read)
                assert scored.sample is not None
                found[scored.job, scored.sample] = score
        for _ in idle:
            pass
        return found

"""Plan of a group's scoring: the contexts of its rollouts, and the weights of its trace's tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pact_lightning.credit.group import Group, ShownTrace
from pact_lightning.objectives.annealing import Supervision
from pact_lightning.objectives.component_sft import likelihood_weights, sft_weights
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.traces.tokens import RenderedTrace
from pact_lightning.update.context import ContextBuilder, PrivilegedContext
from pact_lightning.update.layout import RatioContext, ScoringJob

_NOTHING = np.empty(0, dtype=np.int64)
_NO_TARGET = RenderedTrace(_NOTHING, _NOTHING, _NOTHING, _NOTHING)


@dataclass(frozen=True, slots=True)
class JobPlanner:
    """Planner of the scoring of groups.

    Attributes:
        contexts: Builds the contexts.
        ratio_context: Context in which rollouts are scored.
        keep_zero_variance: Whether groups whose advantages are all 0 keep their rollout terms.
        sft: Tokens of the SFT term; ``None`` without one.
        supervise_delimiters: Count turn delimiters to the tool-call span.
        supervision: Supervision in force.
        off_spec_contexts: Contexts in which rollouts are scored that were sampled with the trace in their prompt.
    """

    contexts: ContextBuilder
    ratio_context: RatioContext
    keep_zero_variance: bool
    sft: SFTConfig | None
    supervise_delimiters: bool
    supervision: Supervision
    off_spec_contexts: tuple[Literal["trace", "prompt"], ...] = ("trace",)

    def jobs(self, group: Group) -> list[ScoringJob]:
        """Plan the scoring of a group; a prompt with a trace that does not fit goes to the anchor.

        Most groups are one job. Where rollouts are shown different traces, each trace is one, and so are the rollouts
        that are shown none; the SFT term is the first one's. Rollouts that were sampled with the trace in their prompt
        are jobs of their own, one for each context that they are scored in.
        """
        everyone = tuple(sample for sample in range(len(group.trajectories)) if sample not in group.off_spec)
        with_rollouts = len(group.trajectories) > 1 and (self.keep_zero_variance or not group.zero_variance)
        jobs = self._on_spec(group, everyone, with_rollouts)
        return [*jobs, *self._off_spec(group, with_rollouts, len(jobs))]

    def _on_spec(self, group: Group, everyone: tuple[int, ...], with_rollouts: bool) -> list[ScoringJob]:
        shown = list(self._contexts(group)) if not group.anchored else []
        if any(context is None for _, context in shown):
            group.anchored = "overlong"
        if group.anchored:
            prompt = self.contexts.prompt(group.task)
            return [ScoringJob(group, None, prompt, self.ratio_context, with_rollouts, None, everyone)]
        jobs: list[ScoringJob] = []
        for part, context in shown:
            assert context is not None
            weights = self._weights(group, context) if not jobs else None
            scored = tuple(sample for sample in part.rollouts if sample in everyone)
            settings = (context.prompt, self.ratio_context, with_rollouts, weights, scored, len(jobs))
            jobs.append(ScoringJob(group, context, *settings))
        rest = tuple(sample for sample in everyone if not any(sample in part.rollouts for part, _ in shown))
        if rest:
            settings = (jobs[0].prompt, self.ratio_context, with_rollouts, None, rest, len(jobs))
            jobs.append(ScoringJob(group, None, *settings))
        return jobs

    def _off_spec(self, group: Group, with_rollouts: bool, part: int) -> Iterator[ScoringJob]:
        if not group.off_spec:
            return
        ids = np.array(group.trajectories[group.off_spec[0]].prompt_ids, dtype=np.int64)  # what the sampler saw
        prompt = self.contexts.prompt(group.task)
        context = PrivilegedContext(prompt, ids, _NO_TARGET, shared=False)
        for number, ratio_context in enumerate(self.off_spec_contexts):
            settings = (ratio_context, with_rollouts, None, group.off_spec, part + number, True, number > 0)
            yield ScoringJob(group, context, prompt, *settings)

    def _contexts(self, group: Group) -> Iterator[tuple[ShownTrace, PrivilegedContext | None]]:
        for part in group.traces:
            longest = max((len(group.trajectories[sample].ids()) for sample in part.rollouts), default=0)
            yield (
                part,
                self.contexts.privileged(
                    group.task,
                    part.trace,
                    self.supervision.level,
                    longest,
                    imitated=group.imitated,
                    blank=part.blank,
                ),
            )

    def _weights(self, group: Group, context: PrivilegedContext) -> Tensor | None:
        if self.sft is None or group.imitated is None:
            return None
        components = torch.from_numpy(context.target.components)
        if self.sft.tokens == "policy":
            return likelihood_weights(components)
        return sft_weights(
            components,
            torch.from_numpy(context.target.min_levels),
            self.supervision,
            supervise_delimiters=self.supervise_delimiters,
        )

"""Plan of a group's scoring: the contexts of its rollouts, and the weights of its trace's tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pact_lightning.credit.group import Group, ShownTrace
from pact_lightning.objectives.annealing import Supervision
from pact_lightning.objectives.component_sft import likelihood_weights, sft_weights
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.update.context import ContextBuilder, PrivilegedContext
from pact_lightning.update.layout import RatioContext, ScoringJob


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
    """

    contexts: ContextBuilder
    ratio_context: RatioContext
    keep_zero_variance: bool
    sft: SFTConfig | None
    supervise_delimiters: bool
    supervision: Supervision

    def jobs(self, group: Group) -> list[ScoringJob]:
        """Plan the scoring of a group; a prompt with a trace that does not fit goes to the anchor.

        Most groups are one job. Where rollouts are shown different traces, each trace is one, and so are the rollouts
        that are shown none; the SFT term is the first one's.
        """
        everyone = tuple(range(len(group.trajectories)))
        with_rollouts = len(everyone) > 1 and (self.keep_zero_variance or not group.zero_variance)
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
            settings = (context.prompt, self.ratio_context, with_rollouts, weights, part.rollouts, len(jobs))
            jobs.append(ScoringJob(group, context, *settings))
        rest = tuple(sample for sample in everyone if not any(sample in part.rollouts for part, _ in shown))
        if rest:
            settings = (jobs[0].prompt, self.ratio_context, with_rollouts, None, rest, len(jobs))
            jobs.append(ScoringJob(group, None, *settings))
        return jobs

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

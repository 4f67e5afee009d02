"""PACTModule: one policy, one frozen reference, three objectives (METHOD section 2).

The choices, where the paper is silent or an ablation asks for another one, are arguments of the module:

=====================  ============================================================  =======
argument               decision                                                      METHOD
=====================  ============================================================  =======
``trace_template``     where ``h*`` stands in ``c^h``                                5.1
``trace_context``      how much of its reasoning is shown                            5.3
``ratio_context``      the context of numerator and denominator of the ratio         2, 8
``sft_normalizer``     what the SFT sum is divided by                                5.4
``supervise_delimiters``  whether turn delimiters belong to the tool-call span       5.5
``zero_variance``      what happens to a group whose advantages are all 0            5.10
``importance_cap``     the bound on weights that correct for the sampler             5.19
=====================  ============================================================  =======
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pact_lightning.callbacks.collapse import CollapseMonitor
from pact_lightning.credit.group import Group
from pact_lightning.metrics.evaluation import EvaluationMetrics, RolloutMetric
from pact_lightning.metrics.rollout_figures import rollout_figures, rollout_line
from pact_lightning.objectives.aggregation import AggregationConfig
from pact_lightning.objectives.annealing import Supervision
from pact_lightning.objectives.component_sft import Normalizer
from pact_lightning.objectives.objective import Objective
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.objectives.surrogate import ClipConfig
from pact_lightning.policy.attention.choice import AttentionPath
from pact_lightning.policy.loading import PolicyConfig, policy_positions
from pact_lightning.policy.logprobs import LogProbs
from pact_lightning.policy.packing import Pack, PackingMode, pack_blocks
from pact_lightning.policy.reference import reference_policy
from pact_lightning.policy.sharding import score_pack
from pact_lightning.rollout.ahead import SampledBy
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.rollout.samplers.base import SamplerBackend
from pact_lightning.training.phase_report import training_metric_names, warn_where_nothing_is_learned
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.recipe_checks import check_objective
from pact_lightning.update.context import ContextBuilder, TraceContext, TraceTemplate
from pact_lightning.update.gradient import gather_gradient
from pact_lightning.update.layout import RatioContext, ScoringBlocks, ScoringJob, head_masks, lay_out
from pact_lightning.update.optimizer import OptimizerConfig
from pact_lightning.update.performance import PhasePerformance, performance_line
from pact_lightning.update.planning import JobPlanner
from pact_lightning.update.prompt_loss import PromptLoss, ScoredRollout
from pact_lightning.update.rollout_scores import RolloutScorer, of_denominator, of_prompt
from pact_lightning.update.sampler_correction import ImportanceCap, SamplerCorrection, cap_in_force
from pact_lightning.update.step_metrics import MAXIMA, step_counts, step_metrics
from pact_lightning.utils.processes import sum_over_processes
from pact_lightning.utils.seeds import derive_seed, python_random


class PACTModule(PolicyModule):
    """A policy trained by PACT.

    One batch is a list of groups and one optimiser step; its loss is the mean over its prompts, however many
    forwards they take.

    Args:
        policy: The policy to train.
        optimizer: Optimiser, learning rate and clipping.
        coefficients: Weights of the SFT, KL and entropy terms.
        objective: How a rollout's tokens enter the loss, such as :class:`~pact_lightning.GSPO` or one of your own; by
            default the clipped surrogate [P].
        clip: Bounds of the surrogate.
        aggregation: Mean over a group's tokens.
        anchor_probability: ``q``: share of prompts scored under the prompt alone [P].
        trace_template: ``turns``, ``user_block`` or ``system_block``.
        trace_context: ``full`` [P], ``safe`` or ``follow``.
        ratio_context: ``trace`` [P]; ``prompt`` scores trace prompts under ``x`` too (the naive mix of RL and SFT);
            ``cross`` divides ``pi_theta(. | c^h)`` by ``pi_old(. | x)``.
        sft: Tokens that the SFT term imitates, and a weight by their probability.
        sft_normalizer: ``weight_sum`` [P] or ``token_count``.
        supervise_delimiters: Count turn delimiters to the tool-call span.
        zero_variance: ``drop`` leaves out the rollout terms of groups whose advantages are all 0; ``keep`` as in the
            paper. A group with a single rollout has none in either case.
        level: Level of the reasoning prefix where no AnnealingCallback sets it.
        tool_call_scale: ``lambda_a`` where no AnnealingCallback sets it.
        max_context_tokens: Tokens of a privileged context with the longest rollout behind it; a longer one loses
            reasoning (METHOD 5.6). By default what the policy has positions for.
        max_tokens_per_forward: Tokens of one forward, which holds one sequence at least; the result is the same.
        packing: ``shared_prefix``, or ``rows`` as the plain alternative.
        head_chunk: Tokens whose logits exist at the same time.
        attention: How packed rows attend: ``auto``, ``blockwise``, ``two_calls`` or ``flex``; see docs/performance.md.
        offload_activations: Keep what the backward pass needs in the host's memory.
        metrics: Metrics of validation and test beside the usual ones, such as a benchmark's own.
        sampler: A backend that samples the rollouts in the policy's stead, such as
            :class:`~pact_lightning.VLLMServer`; by default the policy does so itself.
        importance_cap: Largest weight of a token where sampler and trainer give it different probabilities [D];
            ``auto`` is 2.0 with a ``sampler`` of its own and ``null`` without, ``null`` corrects nothing.
        seed: Seed of the anchoring draws.
    """

    def __init__(
        self,
        *,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  # frozen
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  # frozen
        coefficients: Coefficients = Coefficients(),  # noqa: B008  # frozen
        objective: Objective | None = None,
        clip: ClipConfig = ClipConfig(),  # noqa: B008  # frozen
        aggregation: AggregationConfig = AggregationConfig(),  # noqa: B008  # frozen
        anchor_probability: float = 0.4,
        trace_template: TraceTemplate = "turns",
        trace_context: TraceContext = "full",
        ratio_context: RatioContext = "trace",
        sft: SFTConfig = SFTConfig(),  # noqa: B008  # frozen
        sft_normalizer: Normalizer = "weight_sum",
        supervise_delimiters: bool = False,
        zero_variance: Literal["drop", "keep"] = "drop",
        level: int = 4,
        tool_call_scale: float = 0.8,
        max_context_tokens: int | None = None,
        max_tokens_per_forward: int = 32_768,
        packing: PackingMode = "shared_prefix",
        head_chunk: int = 1024,
        attention: AttentionPath = "auto",
        offload_activations: bool = False,
        metrics: list[RolloutMetric] | None = None,
        sampler: SamplerBackend | None = None,
        importance_cap: ImportanceCap = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy,
            optimizer,
            max_tokens_per_forward=max_tokens_per_forward,
            packing=packing,
            head_chunk=head_chunk,
            attention=attention,
            offload_activations=offload_activations,
            metrics=metrics,
            sampler=sampler,
        )
        self.coefficients = coefficients
        self.objective = objective or Objective()
        check_objective(self.objective, ratio_context, anchor_probability)
        self.clip = clip
        self.aggregation = aggregation
        self.anchor_probability = anchor_probability
        self.ratio_context: RatioContext = ratio_context
        self.sft = sft
        self.sft_normalizer: Normalizer = sft_normalizer
        self.supervise_delimiters = supervise_delimiters
        self.zero_variance = zero_variance
        self.importance_cap = cap_in_force(importance_cap, sampler)
        self._correction = SamplerCorrection(self.importance_cap)
        self.seed = seed
        self.supervision = Supervision(level, tool_call_scale)
        self.mixture: float | None = None  # see MixtureCallback
        self._phase_metrics: dict[str, float] = {}
        self.performance = PhasePerformance()
        longest = policy_positions(policy) if max_context_tokens is None else max_context_tokens
        self.contexts = ContextBuilder(
            self.renderer, trace_template, trace_context, longest, with_answer=sft.with_answer
        )

    @property
    def needs_reference(self) -> bool:
        """True if there is a KL term."""
        return self.coefficients.kl > 0

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add a collapse monitor, unless the Trainer has one."""
        given = any(isinstance(callback, CollapseMonitor) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if given else [CollapseMonitor()])]

    @property
    def metric_names(self) -> frozenset[str]:
        """Names of what a fit logs, its callbacks included that tell their ``metric_names``."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        of_callbacks = (getattr(callback, "metric_names", ()) for callback in callbacks)
        figures = (f"train/{name}" for name in self.objective.figures)
        return super().metric_names.union(training_metric_names(), self._correction.names, figures, *of_callbacks)

    def prepare_phase(self, groups: Sequence[Group], optimizer_steps: int) -> None:
        """Draw the anchors ``z_i`` of a phase and compute ``pi_old`` where it is needed (METHOD 5.8, 5.19).

        Groups that have it already, in a phase that goes on after an interruption, keep it.

        Args:
            groups: All groups of the phase.
            optimizer_steps: Number of optimiser steps of the phase.
        """
        for group in groups:
            draw = python_random("anchor", self.seed, group.phase, group.task.id, group.position).random()
            if not group.traces:
                group.anchored = "no_trace"
            elif draw < self.anchor_probability:
                group.anchored = "drawn"
        jobs = [job for group in groups for job in self._jobs(group) if job.with_rollouts and not job.again]
        off_spec = any(group.off_spec for group in groups) and self.objective.off_spec_contexts != ("trace",)
        if optimizer_steps > 1 or self.ratio_context == "cross" or off_spec:
            self._scorer.keep("old_logps", [of_denominator(job) for job in jobs])
        if self.importance_cap is not None:
            under_trace = {id(job.group) for job in jobs if not job.old_is_sampled}
            self._scorer.keep("prompt_logps", [of_prompt(job) for job in jobs if id(job.group) in under_trace])

    def on_train_epoch_start(self) -> None:
        """Seed the global generators, which LoRA dropout uses, before the phase's first step."""
        torch.manual_seed(derive_seed("phase", self.seed, self.trainer.current_epoch))
        self.performance.start(self.model, self.device)

    def on_train_epoch_end(self) -> None:
        """Log and print the cost of the phase, without the validation after it."""
        metrics = self.performance.metrics()
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)
        rank_zero_info(performance_line(self.trainer.current_epoch, metrics))

    def log_phase(self, groups: Sequence[Group], stats: RolloutStats, ahead: SampledBy | None = None) -> None:
        """Take the figures of a phase's rollouts; they are logged when the phase ends.

        Args:
            groups: The groups of the phase.
            stats: Cost of their rollouts.
            ahead: The weights that sampled, where the rollouts were made ahead of the phase.
        """
        metrics = EvaluationMetrics().to(self.device)  # where torchmetrics can gather from all processes
        for group in groups:
            for trajectory in (*group.trajectories, *group.failed):
                metrics.update(group.task, trajectory)
        figures = metrics.compute() | rollout_figures(groups, stats, self.renderer, self.trainer)
        figures["staleness"] = 0.0 if ahead is None else float(ahead.staleness(self.trainer.global_step))
        self._phase_metrics = {f"rollout/{name}": value for name, value in figures.items()}
        warn_where_nothing_is_learned(figures)
        if ahead is None:  # else their seconds are no part of this phase: they passed beside another update
            self.performance.rollouts(groups, stats)
        rank_zero_info(rollout_line(groups[0].phase, self._phase_metrics))

    def training_step(self, batch: list[Group], batch_idx: int) -> dict[str, Any]:
        """Make one optimiser step on a list of groups that :meth:`prepare_phase` has seen."""
        del batch_idx
        jobs, sums = self.accumulate_gradients(batch, self.manual_backward)
        with self.performance.clock.measure("step"):
            norm = self.apply_gradients()
        found = sum_over_processes(self.trainer, sums | step_counts(batch, jobs), maxima=MAXIMA)
        found["gradient_norm"] = norm
        found["loss"] /= self.trainer.world_size
        self._log_step(len(batch), found)
        return {"loss": torch.tensor(found["loss"])}

    def accumulate_gradients(
        self, batch: Sequence[Group], backward: Callable[[Tensor], Any]
    ) -> tuple[list[ScoringJob], dict[str, float]]:
        """Add the gradient of a batch to the weights', by ``backward`` of the loss of every pack.

        Returns:
            The scoring of the groups, and the sums of the metrics.
        """
        jobs = [job for group in batch for job in self._jobs(group)]
        blocks = lay_out(jobs)
        sums: dict[str, float] = defaultdict(float)
        self._correction = SamplerCorrection(self.importance_cap)
        others: Mapping[tuple[int, int], LogProbs] = {}
        if self.objective.needs_gap or self.objective.needs_divergence:
            others = self._scorer.in_other_context(jobs, keep_hidden=self.objective.needs_divergence)
        packs = pack_blocks(blocks.blocks, self.max_tokens_per_forward, self.packing)

        def loss_of(pack: Pack) -> Tensor:
            with self.offloading(), self.performance.clock.measure("forward"):
                return self._pack_loss(pack, jobs, blocks, sums, others)

        def measured_backward(loss: Tensor) -> None:
            with self.performance.clock.measure("backward"):
                backward(loss)

        gather_gradient(self, packs, loss_of, measured_backward)
        return jobs, sums

    def _job(self, group: Group) -> ScoringJob:
        """Plan the scoring of a group, its first job where there are several."""
        return self._jobs(group)[0]

    def _jobs(self, group: Group) -> list[ScoringJob]:
        coefficients = self._coefficients
        planner = JobPlanner(
            self.contexts,
            self.ratio_context,
            self.zero_variance == "keep",
            self.sft if coefficients.sft > 0 else None,
            self.supervise_delimiters,
            self.supervision,
            self.objective.off_spec_contexts,
        )
        return planner.jobs(group)

    @property
    def _coefficients(self) -> Coefficients:
        return self.coefficients if self.mixture is None else replace(self.coefficients, sft=self.mixture)

    @property
    def _scorer(self) -> RolloutScorer:
        return RolloutScorer(self, self._score, self.max_tokens_per_forward, self.packing)

    def _score(
        self,
        pack: Pack,
        jobs: Sequence[ScoringJob],
        blocks: ScoringBlocks,
        *,
        with_entropy: bool = False,
        reference: bool = False,
        keep_hidden: bool = False,
        against: Sequence[Tensor | None] | None = None,
    ) -> list[LogProbs]:
        """Compute log-probabilities of every read of a pack under the policy or the reference, each ``[R]``."""
        masks = head_masks(jobs, blocks, pack, with_traces=not reference)
        settings: dict[str, Any] = {
            "only": masks,
            "temperature": [blocks.scored(read).temperature for read in pack.reads],
            "chunk_size": self.head_chunk,
            "with_entropy": with_entropy,
            "keep_hidden": keep_hidden,
            "against": against,
            "attention": self.attention,
        }
        with self.performance.forward(pack, masks, reference=reference):
            if not reference:
                return score_pack(self.model, pack, **settings)
            with reference_policy(self.model, self.reference_copy) as model:
                return score_pack(model, pack, **settings)

    def _pack_loss(
        self,
        pack: Pack,
        jobs: Sequence[ScoringJob],
        blocks: ScoringBlocks,
        sums: dict[str, float],
        others: Mapping[tuple[int, int], LogProbs],
    ) -> Tensor:
        """Compute the share of the batch's loss that a pack holds; the shares add up to the loss, however packed."""
        meaning = [blocks.scored(read) for read in pack.reads]
        of_reads = [others.get((scored.job, -1 if scored.sample is None else scored.sample)) for scored in meaning]
        against = [None if other is None else other.hidden for other in of_reads]
        scores = self._score(pack, jobs, blocks, with_entropy=self.coefficients.entropy > 0, against=against)
        has_rollouts = any(scored.sample is not None for scored in meaning)
        needs_reference = self.coefficients.kl > 0 and has_rollouts
        references = self._score(pack, jobs, blocks, reference=True) if needs_reference else [None] * len(scores)
        rollouts: dict[int, list[ScoredRollout]] = defaultdict(list)
        traces: dict[int, Tensor] = {}
        for read, scored, other, score, reference in zip(
            pack.reads, meaning, of_reads, scores, references, strict=True
        ):
            if scored.sample is None:
                traces[scored.job] = score.logp[blocks.offset(read) :]  # [N]
            else:
                rollouts[scored.job].append(ScoredRollout(scored.sample, score, reference, other))
        loss_of = PromptLoss(
            self._coefficients,
            self.objective,
            self.clip,
            self.aggregation,
            self.sft,
            self.sft_normalizer,
            self._correction,
            sums,
            rl_weight=1.0 if self.mixture is None else 1.0 - self.mixture,
        )
        total = torch.zeros((), device=self.device)
        prompts = sum(job.part == 0 for job in jobs)
        for number in sorted({*rollouts, *traces}):
            loss = loss_of(jobs[number], rollouts.get(number, []), traces.get(number))
            total = total + loss / prompts
        sums["loss"] += float(total.detach())
        return total

    def _log_step(self, prompts: int, found: Mapping[str, float]) -> None:
        """Log the figures of an optimiser step, and those of its phase's rollouts."""
        metrics = step_metrics(found, self.objective.figures) | {"train/learning_rate": self.learning_rate}
        metrics |= self._correction.metrics(self.trainer)
        self.log_dict(metrics, batch_size=prompts)
        # Once per phase and so by the epoch: a Trainer that logs every n steps would lose most of them.
        self.log_dict(self._phase_metrics, on_step=False, on_epoch=True, batch_size=1)
        self._phase_metrics = {}

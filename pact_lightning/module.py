"""PACTModule: one policy, one frozen reference, three objectives (METHOD section 2).

The choices, where the paper is silent or an ablation asks for another one, are arguments of the module:

=====================  ============================================================  =======
argument               what it decides                                               METHOD
=====================  ============================================================  =======
``trace_template``     where ``h*`` stands in ``c^h``                                5.1
``trace_context``      how much of its reasoning is shown                            5.3
``ratio_context``      the context of numerator and denominator of the ratio         2, 8
``sft_normalizer``     what the SFT sum is divided by                                5.4
``supervise_delimiters``  whether turn delimiters belong to the tool-call span       5.5
``zero_variance``      what happens to a group whose rollouts all earned the same    5.10
=====================  ============================================================  =======
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pact_lightning.annealing import Supervision
from pact_lightning.callbacks.collapse_monitor import CollapseMonitor
from pact_lightning.context import ContextBuilder, PrivilegedContext, TraceContext, TraceTemplate
from pact_lightning.evaluation import EvaluationMetrics
from pact_lightning.group import Group
from pact_lightning.metrics.rollout_metric import RolloutMetric
from pact_lightning.objectives.component_sft import Normalizer, component_sft_loss, sft_weights
from pact_lightning.objectives.entropy import entropy_bonus
from pact_lightning.objectives.kl import k3_kl
from pact_lightning.objectives.pact import Coefficients, pact_prompt_loss
from pact_lightning.objectives.surrogate import clipped_surrogate
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy.logprobs import LogProbs, token_logprobs
from pact_lightning.policy.packing import Pack, PackingMode, pack_blocks
from pact_lightning.policy.reference import reference_policy
from pact_lightning.policy_module import OptimizerConfig, PolicyModule
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.sampling_signs import sampling_signs
from pact_lightning.scoring import Layout, PromptPlan, RatioContext, head_masks, lay_out
from pact_lightning.seeds import derive_seed, python_random


@dataclass(frozen=True)
class ClipConfig:
    """Bounds of the surrogate.

    Attributes:
        low: The ratio is clipped at ``1 - low`` [C].
        high: The ratio is clipped at ``1 + high`` [C].
        dual: Bound on the ratio where the advantage is negative [C]; ``null`` for none.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = 3.0


class PACTModule(PolicyModule):
    """Trains a policy by PACT.

    One batch is a list of groups and one optimiser step; its loss is the mean over its prompts, however many
    forwards they take.

    Args:
        policy: Which policy to train.
        optimizer: How to train it.
        coefficients: Weights of the SFT, KL and entropy terms.
        clip: Bounds of the surrogate.
        anchor_probability: ``q``: share of prompts scored under the prompt alone [P].
        trace_template: ``turns``, ``user_block`` or ``system_block``.
        trace_context: ``full`` [P], ``safe`` or ``follow``.
        ratio_context: ``trace`` [P]; ``prompt`` scores trace prompts under ``x`` too (the naive mix of RL and SFT);
            ``cross`` divides ``pi_theta(. | c^h)`` by ``pi_old(. | x)``.
        sft_normalizer: ``weight_sum`` [P] or ``token_count``.
        supervise_delimiters: Count turn delimiters to the tool-call span.
        zero_variance: ``drop`` leaves out the rollout terms of groups whose rollouts all earned the same; ``keep``
            as in the paper.
        level: Level of the reasoning prefix where no AnnealingCallback sets it.
        tool_call_scale: ``lambda_a`` where no AnnealingCallback sets it.
        max_tokens_per_forward: Tokens of one forward.
        packing: ``shared_prefix``, or ``rows`` as the plain alternative.
        head_chunk: Tokens whose logits exist at the same time.
        metrics: Metrics of validation and test beside the usual ones, such as a benchmark's own.
        seed: Seed of the anchoring draws.
    """

    def __init__(
        self,
        *,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  # frozen
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  # frozen
        coefficients: Coefficients = Coefficients(),  # noqa: B008  # frozen
        clip: ClipConfig = ClipConfig(),  # frozen
        anchor_probability: float = 0.4,
        trace_template: TraceTemplate = "turns",
        trace_context: TraceContext = "full",
        ratio_context: RatioContext = "trace",
        sft_normalizer: Normalizer = "weight_sum",
        supervise_delimiters: bool = False,
        zero_variance: Literal["drop", "keep"] = "drop",
        level: int = 4,
        tool_call_scale: float = 0.8,
        max_tokens_per_forward: int = 32_768,
        packing: PackingMode = "shared_prefix",
        head_chunk: int = 1024,
        metrics: list[RolloutMetric] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy,
            optimizer,
            max_tokens_per_forward=max_tokens_per_forward,
            packing=packing,
            head_chunk=head_chunk,
            metrics=metrics,
        )
        if not 0.0 <= anchor_probability <= 1.0:
            raise ValueError(f"anchor_probability is a probability, not {anchor_probability}; set it between 0 and 1")
        self.coefficients = coefficients
        self.clip = clip
        self.anchor_probability = anchor_probability
        self.ratio_context: RatioContext = ratio_context
        self.sft_normalizer: Normalizer = sft_normalizer
        self.supervise_delimiters = supervise_delimiters
        self.zero_variance = zero_variance
        self.seed = seed
        self.supervision = Supervision(level, tool_call_scale)
        self._phase_metrics: dict[str, float] = {}
        self.contexts = ContextBuilder(self.renderer, trace_template, trace_context, max_tokens_per_forward)

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.coefficients.kl > 0

    def configure_callbacks(self) -> list[pl.Callback]:
        """Watches for a collapse; a monitor among the Trainer's own callbacks takes this one's place."""
        given = any(isinstance(callback, CollapseMonitor) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if given else [CollapseMonitor()])]

    def prepare_phase(self, groups: Sequence[Group], optimizer_steps: int) -> None:
        """Draws the anchors of a phase and, where its ratios can leave 1, takes ``pi_old`` (METHOD 5.8).

        Groups that have it already, in a phase that goes on after an interruption, keep it.

        Args:
            groups: All groups of the phase.
            optimizer_steps: How many optimiser steps the phase will make.
        """
        for group in groups:
            draw = python_random("anchor", self.seed, group.phase, group.task.id, group.position).random()
            if group.task.trace is None or not group.task.trace.turns:
                group.anchored = "no_trace"
            elif draw < self.anchor_probability:
                group.anchored = "drawn"
        plans = [self._plan(group) for group in groups]
        if optimizer_steps > 1 or self.ratio_context == "cross":
            self._take_old_logps([plan for plan in plans if plan.group.old_logps is None])

    def on_train_epoch_start(self) -> None:
        """Seeds what is left to global generators (LoRA dropout) before the phase's first step."""
        torch.manual_seed(derive_seed("phase", self.seed, self.trainer.current_epoch))

    def log_phase(self, groups: Sequence[Group], stats: RolloutStats) -> None:
        """Takes the figures of a phase's rollouts; they are logged when the phase ends."""
        metrics = EvaluationMetrics()
        for group in groups:
            for trajectory in (*group.trajectories, *group.failed):
                metrics.update(group.task, trajectory)
        rewards = [reward for group in groups for reward in group.rewards]
        self._phase_metrics = {f"rollout/{name}": value for name, value in metrics.compute().items()}
        self._phase_metrics |= {
            f"rollout/{name}": value for name, value in sampling_signs(groups, self.renderer).items()
        }
        if all(group.zero_variance for group in groups):
            rank_zero_warn(
                "all groups of a phase are of zero variance: all rollouts of a prompt earned the same, so that nothing "
                "is learned from them; look at the rewards in the trajectories, or at the tasks' difficulty"
            )
        self._phase_metrics |= {
            "rollout/reward": sum(rewards) / max(len(rewards), 1),
            "rollout/zero_variance": sum(group.zero_variance for group in groups) / len(groups),
            "rollout/tokens_per_second": stats.tokens / max(stats.seconds, 1e-9),
            "rollout/seconds": stats.seconds,
            "rollout/tool_share": stats.tool_seconds / max(stats.seconds, 1e-9),
            "rollout/tool_timeouts": float(stats.tool_timeouts),
            "rollout/environment_failures": float(stats.environment_failures),
        }
        rank_zero_info(_phase_line(groups[0].phase, self._phase_metrics))

    def training_step(self, batch: list[Group], batch_idx: int) -> dict[str, Any]:
        """One optimiser step on a list of groups that :meth:`prepare_phase` has seen."""
        del batch_idx
        plans = [self._plan(group) for group in batch]
        layout = lay_out(plans)
        sums: dict[str, float] = defaultdict(float)
        for pack in pack_blocks(layout.blocks, self.max_tokens_per_forward, self.packing):
            loss = self._pack_loss(pack, plans, layout, sums)
            if loss.requires_grad:
                self.manual_backward(loss)
        sums["gradient_norm"] = self.apply_gradients()
        self._log_step(batch, plans, sums)
        return {"loss": torch.tensor(sums["loss"])}

    def _plan(self, group: Group) -> PromptPlan:
        """What a group needs to be scored; sends prompts to the anchor whose trace does not fit."""
        context = None if group.anchored else self._context(group)
        with_rollouts = bool(group.trajectories) and not (group.zero_variance and self.zero_variance == "drop")
        weights = None
        if context is not None and self.coefficients.sft > 0:
            weights = sft_weights(
                torch.from_numpy(context.target.components),
                torch.from_numpy(context.target.min_levels),
                self.supervision,
                supervise_delimiters=self.supervise_delimiters,
            )
        prompt = self.contexts.prompt(group.task) if context is None else context.prompt
        return PromptPlan(group, context, prompt, self.ratio_context, with_rollouts, weights)

    def _context(self, group: Group) -> PrivilegedContext | None:
        assert group.task.trace is not None
        longest = max((len(trajectory.ids()) for trajectory in group.trajectories), default=0)
        context = self.contexts.privileged(group.task, group.task.trace, self.supervision.level, longest)
        if context is None:
            group.anchored = "overlong"
        return context

    @torch.no_grad()
    def _take_old_logps(self, plans: Sequence[PromptPlan]) -> None:
        """``pi_old`` under the context of the ratio's denominator."""
        cross = self.ratio_context == "cross"
        plans = [
            PromptPlan(
                plan.group, None if cross else plan.context, plan.prompt, plan.ratio_context, plan.with_rollouts, None
            )
            for plan in plans
            if plan.with_rollouts
        ]
        layout = lay_out(plans)
        for plan in plans:
            plan.group.old_logps = [torch.zeros(0)] * plan.samples
        for pack in pack_blocks(layout.blocks, self.max_tokens_per_forward, self.packing):
            for read, score in zip(pack.reads, self._score(pack, plans, layout), strict=True):
                scored = layout.scored(read)
                old = plans[scored.plan].group.old_logps
                assert old is not None
                assert scored.sample is not None
                old[scored.sample] = score.logp

    def _score(
        self,
        pack: Pack,
        plans: Sequence[PromptPlan],
        layout: Layout,
        *,
        with_entropy: bool = False,
        reference: bool = False,
    ) -> list[LogProbs]:
        """Log-probabilities of every read of a pack under the policy, or under the reference."""
        temperature = plans[0].group.temperature
        masks = head_masks(plans, layout, pack)
        settings: dict[str, Any] = {
            "only": masks,
            "temperature": temperature,
            "chunk_size": self.head_chunk,
            "with_entropy": with_entropy,
        }
        if not reference:
            return token_logprobs(self.model, pack, **settings)
        with reference_policy(self.model, self.reference_copy) as model:
            return token_logprobs(model, pack, **settings)

    def _pack_loss(self, pack: Pack, plans: Sequence[PromptPlan], layout: Layout, sums: dict[str, float]) -> Tensor:
        """The share of the batch's loss that this pack holds.

        Every term is a sum over rollouts, or the trace's own, so that it does not matter how they were packed.
        """
        scores = self._score(pack, plans, layout, with_entropy=self.coefficients.entropy > 0)
        has_rollouts = any(layout.scored(read).sample is not None for read in pack.reads)
        needs_reference = self.coefficients.kl > 0 and has_rollouts
        references = self._score(pack, plans, layout, reference=True) if needs_reference else [None] * len(scores)
        rollouts: dict[int, list[tuple[int, LogProbs, LogProbs | None]]] = defaultdict(list)
        traces: dict[int, Tensor] = {}
        for read, score, reference in zip(pack.reads, scores, references, strict=True):
            scored = layout.scored(read)
            if scored.sample is None:
                traces[scored.plan] = score.logp[layout.offset(read) :]
            else:
                rollouts[scored.plan].append((scored.sample, score, reference))
        total = torch.zeros((), device=self.device)
        for number in sorted({*rollouts, *traces}):
            loss = self._prompt_loss(plans[number], rollouts.get(number, []), traces.get(number), sums)
            total = total + loss / len(plans)
        sums["loss"] += float(total.detach())
        return total

    def _prompt_loss(
        self,
        plan: PromptPlan,
        rollouts: list[tuple[int, LogProbs, LogProbs | None]],
        trace_logp: Tensor | None,
        sums: dict[str, float],
    ) -> Tensor:
        """Eq. 12-14 for the part of a prompt that is in this pack."""
        terms: dict[str, Tensor | None] = {"rl": None, "kl": None, "entropy": None, "sft": None}
        if rollouts:
            terms |= self._rollout_terms(plan, rollouts, sums)
        if trace_logp is not None and plan.sft_weights is not None:
            weights = plan.sft_weights.to(trace_logp.device)
            terms["sft"], metrics = component_sft_loss(trace_logp, weights, normalizer=self.sft_normalizer)
            sums["sft_prompts"] += 1
            sums["sft_skipped"] += float(metrics["skipped"])
        elif plan.context is not None:
            terms["sft"] = torch.zeros((), device=self.device)  # it is in another pack of this batch
        loss, metrics = pact_prompt_loss(anchored=plan.context is None, coefficients=self.coefficients, **terms)
        for name in ("rl", "kl", "entropy", "sft"):
            if name in metrics:
                sums[f"{name}_loss"] += float(metrics[name])
        return loss

    def _rollout_terms(
        self, plan: PromptPlan, rollouts: list[tuple[int, LogProbs, LogProbs | None]], sums: dict[str, float]
    ) -> dict[str, Tensor | None]:
        group = plan.group
        samples = [sample for sample, _, _ in rollouts]
        logp = _padded([score.logp for _, score, _ in rollouts])
        mask = _padded([group.policy_mask(sample) for sample in samples]).to(logp.device)
        advantages = _padded([group.token_advantages(sample) for sample in samples]).to(logp.device)
        if group.old_logps is None:
            old = logp.detach()
        else:
            old = _padded([group.old_logps[sample] for sample in samples]).to(logp.device)
        share = len(samples) / plan.samples  # of the group's rollouts in this pack
        rl, metrics = clipped_surrogate(
            logp, old, advantages, mask, clip_low=self.clip.low, clip_high=self.clip.high, dual_clip=self.clip.dual
        )
        terms: dict[str, Tensor | None] = {"rl": rl * share, "kl": None, "entropy": None}
        for name, value in metrics.items():
            sums[f"surrogate/{name}"] += float(value) * share
        sums["rl_prompts"] += share
        if self.coefficients.kl > 0:
            reference = _padded([score.logp for _, _, score in rollouts if score is not None])
            terms["kl"] = k3_kl(logp, reference, mask)[0] * share
        if self.coefficients.entropy > 0:
            entropy = _padded([score.entropy for _, score, _ in rollouts if score.entropy is not None])
            terms["entropy"] = entropy_bonus(entropy, mask)[0] * share
        return terms

    def _log_step(self, batch: list[Group], plans: Sequence[PromptPlan], sums: dict[str, float]) -> None:
        """Logs means: losses over the prompts that have the term, shares over all prompts of the step."""
        with_rl, with_sft = max(sums["rl_prompts"], 1e-9), max(sums["sft_prompts"], 1e-9)
        metrics = {
            "train/loss": sums["loss"],
            "train/gradient_norm": sums["gradient_norm"],
            "train/rl_loss": sums["rl_loss"] / with_rl,
            "train/sft_loss": sums["sft_loss"] / with_sft,
            "train/kl": sums["kl_loss"] / with_rl,
            "train/entropy": -sums["entropy_loss"] / with_rl,
            "train/anchored": sum(plan.context is None for plan in plans) / len(plans),
            "train/zero_variance": sum(group.zero_variance for group in batch) / len(batch),
            "train/sft_skipped": sums["sft_skipped"],
            "train/learning_rate": self.learning_rate,
        }
        for reason in ("drawn", "no_trace", "overlong"):
            metrics[f"anchor/{reason}"] = sum(group.anchored == reason for group in batch) / len(batch)
        dropped = [plan.context.dropped_turns > 0 for plan in plans if plan.context is not None]
        metrics["anchor/trace_shortened"] = sum(dropped) / len(batch)
        metrics |= {
            f"train/{name.removeprefix('surrogate/')}": value / with_rl
            for name, value in sums.items()
            if name.startswith("surrogate/")
        }
        self.log_dict(metrics, batch_size=len(batch))
        # Once per phase and so by the epoch: a Trainer that logs every n steps would lose most of them.
        self.log_dict(self._phase_metrics, on_step=False, on_epoch=True, batch_size=1)
        self._phase_metrics = {}


def _phase_line(phase: int, metrics: Mapping[str, float]) -> str:
    """What the rollouts of a phase did, for people who watch."""
    found = {name.removeprefix("rollout/"): value for name, value in metrics.items()}
    correct = f", {found['answer_correct']:.0%} correct" if "answer_correct" in found else ""
    return (
        f"phase {phase}: mean reward {found['reward']:.2f}{correct}, {found['answered']:.0%} answered, "
        f"{found['turns']:.1f} turns and {found['calls']:.1f} calls each, {found['zero_variance']:.0%} of the prompts "
        f"without variance, {found['seconds']:.1f} s of rollouts"
    )


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different length as ``[K, T]``, zeros to the right."""
    return pad_sequence(list(rows), batch_first=True)

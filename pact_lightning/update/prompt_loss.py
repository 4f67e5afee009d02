"""Loss of one prompt from the log-probabilities of its rollouts and its trace (METHOD section 2, eq. 12-14)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pact_lightning.objectives.aggregation import AggregationConfig, aggregate
from pact_lightning.objectives.component_sft import Normalizer, component_sft_loss
from pact_lightning.objectives.kl import k3_values
from pact_lightning.objectives.objective import Objective, RolloutTokens
from pact_lightning.objectives.pact import Coefficients, pact_prompt_loss
from pact_lightning.objectives.sft_config import SFTConfig
from pact_lightning.objectives.surrogate import ClipConfig
from pact_lightning.policy.logprobs import LogProbs
from pact_lightning.update.layout import ScoringJob
from pact_lightning.update.sampler_correction import SamplerCorrection


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout of a prompt with its log-probabilities.

    Attributes:
        sample: Its index in the group.
        policy: Log-probabilities under the policy, ``[R]``, with the entropy where there is a bonus on it.
        reference: Log-probabilities under the frozen reference, ``[R]``; ``None`` without a KL term.
        other: Log-probabilities under the policy in the other context, ``[R]``, without gradient; ``None`` where the
            objective needs none, or there is no trace.
    """

    sample: int
    policy: LogProbs
    reference: LogProbs | None
    other: LogProbs | None = None


@dataclass(frozen=True, slots=True)
class PromptLoss:
    """The losses of a step's prompts.

    A prompt may be spread over several packs. Every term is a sum over rollouts, or the trace's own, so the losses of
    the parts add up to the prompt's.

    Attributes:
        coefficients: Weights of the terms.
        objective: Loss of a rollout's token.
        clip: Bounds of the surrogate.
        aggregation: Mean over the rollouts' tokens.
        sft: Tokens of the SFT term and their weights.
        sft_normalizer: Divisor of the SFT sum.
        correction: Weights of the step's rollouts where the sampler was off.
        sums: The step's figures, to which every part adds (a ``defaultdict`` of 0); of :data:`.step_metrics.MAXIMA`
            the largest is kept.
        rl_weight: Weight of the surrogate.
    """

    coefficients: Coefficients
    objective: Objective
    clip: ClipConfig
    aggregation: AggregationConfig
    sft: SFTConfig
    sft_normalizer: Normalizer
    correction: SamplerCorrection
    sums: dict[str, float]
    rl_weight: float = 1.0

    def __call__(self, job: ScoringJob, rollouts: Sequence[ScoredRollout], trace_logp: Tensor | None) -> Tensor:
        """Compute the loss of the part of a prompt that a pack holds, a scalar.

        Args:
            job: The prompt.
            rollouts: Its rollouts in the pack.
            trace_logp: Log-probabilities of its trace's tokens, ``[N]``; ``None`` where the trace is in another pack.
        """
        terms: dict[str, Tensor | None] = {"rl": None, "kl": None, "entropy": None, "sft": None}
        if rollouts:
            terms |= self._rollout_terms(job, rollouts)
        if trace_logp is not None and job.sft_weights is not None:
            weights = job.sft_weights.to(trace_logp.device)
            terms["sft"], metrics = component_sft_loss(
                trace_logp, weights, normalizer=self.sft_normalizer, factors=self.sft.factors(trace_logp)
            )
            self.sums["sft_prompts"] += 1
            self.sums["sft_skipped"] += float(metrics["skipped"])
        elif job.context is not None:
            terms["sft"] = rollouts[0].policy.logp.new_zeros(())  # it is in another pack of this batch
        loss, metrics = pact_prompt_loss(
            anchored=job.context is None, coefficients=self.coefficients, rl_weight=self.rl_weight, **terms
        )
        for name in ("rl", "kl", "entropy", "sft"):
            if name in metrics:
                self.sums[f"{name}_loss"] += float(metrics[name])
        return loss

    def _rollout_terms(self, job: ScoringJob, rollouts: Sequence[ScoredRollout]) -> dict[str, Tensor | None]:
        group = job.group
        samples = [rollout.sample for rollout in rollouts]
        logp = _padded([rollout.policy.logp for rollout in rollouts])  # [K, T]
        mask = _padded([group.policy_mask(sample) for sample in samples]).to(logp.device)  # [K, T]
        advantages = _padded([group.token_advantages(sample) for sample in samples]).to(logp.device)
        if group.old_logps is None:
            old = logp.detach()  # on-policy: the ratio is 1, its gradient is not 0
        else:
            old = _padded([group.old_logps[sample] for sample in samples]).to(logp.device)
        share = len(samples) / job.samples  # of the group's rollouts in this pack
        weights = self.correction.weights(job, samples, old, mask)  # [K, T]
        if weights is not None:
            advantages = advantages * weights  # in which the surrogate is homogeneous
        turns = _padded([group.turn_indices(sample) for sample in samples]).to(logp.device)  # [K, T]
        gap = _gap(job, rollouts) if self.objective.needs_gap else None
        divergences = [rollout.policy.kl for rollout in rollouts if rollout.policy.kl is not None]
        divergence = _padded(divergences) if divergences else None
        contexts = {"off_spec": job.off_spec, "under_trace": job.under_trace}
        tokens = RolloutTokens(logp, old, advantages, mask, turns, gap, divergence, **contexts)
        losses, metrics = self.objective.losses(tokens, self.clip)

        def mean(values: Tensor) -> Tensor:
            return aggregate(values, mask, self.aggregation, rollouts=job.samples, tokens=group.policy_tokens)

        terms: dict[str, Tensor | None] = {"rl": mean(losses), "kl": None, "entropy": None}
        count = int(mask.sum())
        largest = float(metrics.pop("ratio_max"))
        self.sums["surrogate/ratio_max"] = max(self.sums["surrogate/ratio_max"], largest)
        for name, value in metrics.items():
            self.sums[f"surrogate/{name}"] += float(value) * count
        self.sums["rl_tokens"] += count
        self.sums["rl_prompts"] += 0.0 if job.again else share
        if self.coefficients.kl > 0:
            reference = _padded([rollout.reference.logp for rollout in rollouts if rollout.reference is not None])
            terms["kl"] = mean(k3_values(logp, reference, mask)[0])
        if self.coefficients.entropy > 0:
            entropy = _padded([rollout.policy.entropy for rollout in rollouts if rollout.policy.entropy is not None])
            terms["entropy"] = -mean(entropy)
        return terms


def _gap(job: ScoringJob, rollouts: Sequence[ScoredRollout]) -> Tensor | None:
    """Compute ``log pi(tau | c^h) - log pi(tau | x)``, ``[K, T]``, without gradient."""
    others = [rollout.other.logp for rollout in rollouts if rollout.other is not None]
    if not others:
        return None
    gap = _padded([rollout.policy.logp for rollout in rollouts]).detach() - _padded(others)  # [K, T]
    return gap if job.under_trace else -gap


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Pad rows of different length to ``[K, T]`` with zeros on the right."""
    return pad_sequence(list(rows), batch_first=True)

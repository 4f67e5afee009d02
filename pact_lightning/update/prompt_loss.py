"""Loss of one prompt from the log-probabilities of its rollouts and its trace (METHOD section 2, eq. 12-14)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pact_lightning.objectives.component_sft import Normalizer, component_sft_loss
from pact_lightning.objectives.kl import entropy_bonus, k3_kl
from pact_lightning.objectives.pact import Coefficients, pact_prompt_loss
from pact_lightning.objectives.surrogate import ClipConfig, clipped_surrogate
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
    """

    sample: int
    policy: LogProbs
    reference: LogProbs | None


@dataclass(frozen=True, slots=True)
class PromptLoss:
    """The losses of a step's prompts.

    A prompt may be spread over several packs. Every term is a sum over rollouts, or the trace's own, so the losses of
    the parts add up to the prompt's.

    Attributes:
        coefficients: Weights of the terms.
        clip: Bounds of the surrogate.
        sft_normalizer: Divisor of the SFT sum.
        correction: Weights of the step's rollouts where the sampler was off.
        sums: The step's figures, to which every part adds (a ``defaultdict`` of 0); of :data:`.step_metrics.MAXIMA`
            the largest is kept.
    """

    coefficients: Coefficients
    clip: ClipConfig
    sft_normalizer: Normalizer
    correction: SamplerCorrection
    sums: dict[str, float]

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
            terms["sft"], metrics = component_sft_loss(trace_logp, weights, normalizer=self.sft_normalizer)
            self.sums["sft_prompts"] += 1
            self.sums["sft_skipped"] += float(metrics["skipped"])
        elif job.context is not None:
            terms["sft"] = rollouts[0].policy.logp.new_zeros(())  # it is in another pack of this batch
        loss, metrics = pact_prompt_loss(anchored=job.context is None, coefficients=self.coefficients, **terms)
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
        rl, metrics = clipped_surrogate(
            logp, old, advantages, mask, clip_low=self.clip.low, clip_high=self.clip.high, dual_clip=self.clip.dual
        )
        terms: dict[str, Tensor | None] = {"rl": rl * share, "kl": None, "entropy": None}
        tokens = int(mask.sum())
        largest = float(metrics.pop("ratio_max"))
        self.sums["surrogate/ratio_max"] = max(self.sums["surrogate/ratio_max"], largest)
        for name, value in metrics.items():
            self.sums[f"surrogate/{name}"] += float(value) * tokens
        self.sums["rl_tokens"] += tokens
        self.sums["rl_prompts"] += share
        if self.coefficients.kl > 0:
            reference = _padded([rollout.reference.logp for rollout in rollouts if rollout.reference is not None])
            terms["kl"] = k3_kl(logp, reference, mask)[0] * share
        if self.coefficients.entropy > 0:
            entropy = _padded([rollout.policy.entropy for rollout in rollouts if rollout.policy.entropy is not None])
            terms["entropy"] = entropy_bonus(entropy, mask)[0] * share
        return terms


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Pad rows of different length to ``[K, T]`` with zeros on the right."""
    return pad_sequence(list(rows), batch_first=True)

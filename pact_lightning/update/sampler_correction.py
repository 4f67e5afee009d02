"""Mismatch between sampler and trainer, and the token weights that correct for it (METHOD 5.19)."""

import math
from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pact_lightning.objectives.importance import sampling_mismatch, truncated_importance_weights
from pact_lightning.rollout.samplers.base import SamplerBackend
from pact_lightning.update.layout import ScoringJob
from pact_lightning.utils.processes import over_processes

_MEANS = ("abs_difference", "kl", "weight_mean", "capped")

ImportanceCap = float | Literal["auto"] | None


def cap_in_force(wanted: ImportanceCap, sampler: SamplerBackend | type | None) -> float | None:
    """Resolve ``auto``: 2.0 with a sampler backend, none where the policy samples itself.

    Raises:
        ValueError: The cap is below 1.
    """
    if wanted == "auto":
        return None if sampler is None else 2.0
    if wanted is not None and not wanted >= 1.0:
        raise ValueError(
            f"importance_cap must be at least 1, not {wanted}: a weight is 1 where sampler and trainer agree"
        )
    return wanted


class SamplerCorrection:
    """The mismatch of one optimiser step's rollouts.

    Args:
        cap: The largest weight; ``None`` measures only.
    """

    def __init__(self, cap: float | None) -> None:
        self._cap = cap
        self._tokens = 0
        self._sums = dict.fromkeys(("abs_difference", "kl") if cap is None else _MEANS, 0.0)
        self._ratio_max = 0.0

    def weights(self, job: ScoringJob, samples: Sequence[int], old: Tensor, mask: Tensor) -> Tensor | None:
        """Measure some rollouts of a prompt and compute their weights.

        Args:
            job: The prompt.
            samples: Indices of the rollouts.
            old: The ratio's denominator, ``[K, T]``.
            mask: Policy tokens, ``[K, T]``.

        Returns:
            The weights, ``[K, T]``; ``None`` where nothing is corrected. Without a cap some rollouts are not measured
            either: those that are scored under their trace, which would take another forward, and those that no
            sampler made.

        Raises:
            ValueError: There is a cap, and a rollout lacks the sampler's log-probabilities.
        """
        if self._cap is None and not all(job.group.trajectories[sample].sampled_logps for sample in samples):
            return None
        if job.old_is_sampled:
            logp = old.detach()
        elif job.group.prompt_logps is not None:
            logp = _rows([job.group.prompt_logps[sample] for sample in samples], mask)
        else:
            return None
        sampled = _rows([job.group.sampled_logps(sample) for sample in samples], mask)
        metrics, weights = sampling_mismatch(logp, sampled, mask), None
        if self._cap is not None:
            weights, corrected = truncated_importance_weights(logp, sampled, mask, cap=self._cap)
            metrics |= corrected
        tokens = int((mask != 0).sum())
        self._tokens += tokens
        self._ratio_max = max(self._ratio_max, float(metrics.pop("ratio_max")))
        for name, value in metrics.items():
            self._sums[name] += float(value) * tokens
        return weights

    @property
    def names(self) -> tuple[str, ...]:
        """Names of :meth:`metrics`."""
        return tuple(f"mismatch/{name}" for name in (*self._sums, "ratio_max"))

    def metrics(self, trainer: pl.Trainer) -> dict[str, float]:
        """Average over the tokens that were measured, with the largest ratio; NaN where none was.

        The names are the same in every step, since Lightning repeats the value of a name that a step leaves out.

        Args:
            trainer: The Trainer; all its processes have to call this together.
        """
        own = self._sums | {"tokens": float(self._tokens), "ratio_max": self._ratio_max}
        measured = [process for process in over_processes(trainer, own) if process["tokens"]]
        tokens = sum(process["tokens"] for process in measured)
        means = {
            name: sum(process[name] for process in measured) / tokens if measured else math.nan for name in self._sums
        }
        largest = max((process["ratio_max"] for process in measured), default=math.nan)
        return {f"mismatch/{name}": value for name, value in (means | {"ratio_max": largest}).items()}


def _rows(rows: list[Tensor], mask: Tensor) -> Tensor:
    return pad_sequence(rows, batch_first=True).to(mask.device)

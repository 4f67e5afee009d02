"""SFTModule: supervised fine-tuning on whole expert traces, as a baseline and as a warm-up."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.objectives.component_sft import component_sft_loss, likelihood_weights
from pact_lightning.objectives.sft_config import SFTConfig, TokenWeight
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy.packing import Block, Pack, PackingMode, pack_blocks
from pact_lightning.policy.sharding import score_pack
from pact_lightning.rollout.samplers.base import SamplerBackend
from pact_lightning.traces.tokens import RenderedTrace, render_trace
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.types.task import Task
from pact_lightning.update.gradient import gather_gradient
from pact_lightning.update.optimizer import OptimizerConfig
from pact_lightning.utils.processes import sum_over_processes


class SFTModule(PolicyModule):
    """Full likelihood of an expert trace's policy tokens, mean per trace, then over traces (METHOD section 8).

    Args:
        policy: Which policy to train.
        optimizer: How to train it.
        with_answer: Supervise the final answer turn too. PACT's traces never show it; a policy that is to answer at
            all has to have learned it somewhere.
        token_weight: Weight of a token by its probability: ``none``, ``chord_phi`` or ``trust_region``.
        alpha: Probability below which ``trust_region`` holds a token back [D].
        max_tokens_per_forward: Tokens of one forward, which holds one trace at least; the result is the same.
        head_chunk: Tokens whose logits exist at the same time.
        metrics: Metrics of validation and test beside the usual ones, such as a benchmark's own.
        sampler: What samples the rollouts of validation and test in the policy's stead.
    """

    def __init__(
        self,
        *,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  # frozen
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4),  # noqa: B008  # frozen
        with_answer: bool = True,
        token_weight: TokenWeight = "none",
        alpha: float = 0.1,
        max_tokens_per_forward: int = 16_384,
        head_chunk: int = 1024,
        metrics: list[RolloutMetric] | None = None,
        sampler: SamplerBackend | None = None,
    ) -> None:
        packing: PackingMode = "shared_prefix"  # of system turns with their tools
        super().__init__(
            policy,
            optimizer,
            max_tokens_per_forward=max_tokens_per_forward,
            packing=packing,
            head_chunk=head_chunk,
            metrics=metrics,
            sampler=sampler,
        )
        self.with_answer = with_answer
        self.sft = SFTConfig("policy", token_weight=token_weight, alpha=alpha)

    @property
    def metric_names(self) -> frozenset[str]:
        """Names of what a fit logs."""
        step = {"sft/loss", "sft/gradient_norm", "sft/learning_rate", "train/skipped_steps"}
        return super().metric_names.union(step)

    def training_step(self, batch: list[Task], batch_idx: int) -> dict[str, Any]:
        """Make one optimiser step on a list of tasks with traces."""
        traces = [self._render(task) for task in batch]
        blocks = [
            Block(self.renderer.prompt(task.prompt.messages, task.prompt.tools), [trace.ids])
            for task, trace in zip(batch, traces, strict=True)
        ]
        weights = [likelihood_weights(torch.from_numpy(trace.components)) for trace in traces]
        sums: dict[str, float] = defaultdict(float)

        def loss_of(pack: Pack) -> Tensor:
            only = [weights[read.block] > 0 for read in pack.reads]
            scores = score_pack(self.model, pack, only=only, chunk_size=self.head_chunk, attention=self.attention)
            losses = [
                component_sft_loss(
                    score.logp, weights[read.block].to(score.logp.device), factors=self.sft.factors(score.logp)
                )[0]
                for score, read in zip(scores, pack.reads, strict=True)
            ]
            loss = torch.stack(losses).sum() / len(batch)
            sums["loss"] += float(loss.detach())
            return loss

        packs = pack_blocks(blocks, self.max_tokens_per_forward, self.packing)
        gather_gradient(self, packs, loss_of, self.manual_backward)
        norm = self.apply_gradients()
        total = sum_over_processes(self.trainer, sums)["loss"] / self.trainer.world_size
        metrics = {"sft/loss": total, "sft/gradient_norm": norm, "sft/learning_rate": self.learning_rate}
        self.log_dict(metrics, batch_size=len(batch), prog_bar=True)
        return {"loss": torch.tensor(total)}

    def _render(self, task: Task) -> RenderedTrace:
        if task.trace is None:
            raise ValueError(
                f"task {task.id} has no expert trace to learn from; remove such tasks, or train with PACT instead"
            )
        prompt = task.prompt
        return render_trace(
            self.renderer, task.trace, prompt.follow_ups, tools=prompt.tools, with_final=self.with_answer
        )

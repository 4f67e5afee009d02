"""What every training method here shares: policy, tokenizer, optimiser, adapter-only checkpoints, manual steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.metrics.evaluation import EvaluationMetrics, RolloutMetric, Scores
from pact_lightning.policy.attention.choice import AttentionChoice, AttentionPath, check_path
from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer
from pact_lightning.policy.memory import keep_freed_memory, offloaded_activations
from pact_lightning.policy.packing import PackingMode
from pact_lightning.policy.reference import make_reference
from pact_lightning.policy.sharding import WholePolicy, common_value, shard_policy
from pact_lightning.policy.state_dict import (
    fingerprint,
    load_trainable_state,
    sharded_state,
    trainable_state,
    without_prefix,
)
from pact_lightning.resume.checkpoint_files import use_whole_files
from pact_lightning.resume.exact_resume import ExactResume
from pact_lightning.resume.interruption import Interruption
from pact_lightning.rollout.samplers.base import LentPolicy, Sampler, SamplerBackend, SamplingConfig, keeps_weights
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.training.evaluation import comparison_table, report_scores, write_rollouts
from pact_lightning.training.trainer_checks import check_checkpoints, check_trainer
from pact_lightning.update.optimizer import FiniteSteps, NonFiniteGradientError, OptimizerConfig, which_are_not_finite
from pact_lightning.utils.processes import expect_common_figures
from pact_lightning.utils.seeds import derive_seed

if TYPE_CHECKING:
    from pact_lightning.training.evaluation import Evaluated
    from pact_lightning.training.task_datamodule import TaskDataModule

_PREFIX = "policy."
"""Of the names of a sharded policy's weights in checkpoints."""


class PolicyModule(pl.LightningModule):
    """A policy with its optimiser. Subclasses say what a training step is.

    Checkpoints hold the trained weights only (the adapter, or all weights), optimiser and counters.

    Args:
        policy: Which policy to train.
        optimizer: How to train it.
        max_tokens_per_forward: Tokens of one forward; what a batch needs beyond that goes into further forwards,
            with the same result.
        packing: ``shared_prefix`` runs what rollouts have in common once; ``rows`` is the plain alternative.
        head_chunk: Tokens whose logits exist at the same time.
        attention: How packed rows attend; ``auto`` chooses by the device and logs why.
        offload_activations: Keep what the backward pass needs in the host's memory.
        metrics: Metrics of validation and test beside the usual ones, such as a benchmark's own.
        sampler: What samples the rollouts in the policy's stead; by default it does so itself.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        optimizer: OptimizerConfig,
        *,
        max_tokens_per_forward: int,
        packing: PackingMode,
        head_chunk: int,
        attention: AttentionPath = "auto",
        offload_activations: bool = False,
        metrics: Sequence[RolloutMetric] | None = None,
        sampler: SamplerBackend | None = None,
    ) -> None:
        super().__init__()
        if head_chunk < 1 or max_tokens_per_forward < 1:
            raise ValueError(
                f"model.head_chunk ({head_chunk}) and model.max_tokens_per_forward ({max_tokens_per_forward}) count "
                "tokens; set both to at least 1"
            )
        self.automatic_optimization = False
        self.strict_loading = False
        self.policy_config = policy
        self.optimizer_config = optimizer
        self.finite_steps = FiniteSteps(optimizer.max_skipped_steps)
        self.max_tokens_per_forward = max_tokens_per_forward
        self.packing: PackingMode = packing
        self.sampler_backend = sampler
        self.head_chunk = head_chunk
        self.attention = AttentionChoice(attention)
        self.offload_activations = offload_activations
        # Loaded at once: cheap, and a missing model is told before anything else starts.
        self.tokenizer = load_tokenizer(policy)
        self.renderer = ChatRenderer(TextCodec(self.tokenizer))
        self.policy: nn.Module | None = None
        self._reference_copy: list[nn.Module] = []
        self._whole: WholePolicy | None = None
        self.evaluation = EvaluationMetrics(metrics or ())
        self.history: list[tuple[int, Scores]] = []
        self.interruption = Interruption()

    def configure_callbacks(self) -> list[pl.Callback]:
        """What makes a fit safe to interrupt; Lightning asks for it before anything is set up, in every stage."""
        use_whole_files(self.trainer)
        ExactResume.prepare(self.trainer)
        if self.trainer.state.fn != "fit":
            return []
        return [ExactResume(), self.interruption]

    def setup(self, stage: str) -> None:
        """Refuses settings that cannot be honoured; runs before the policy is loaded."""
        check_trainer(self.trainer)
        check_path(self.attention.path, self.trainer.strategy.root_device.type)
        if stage == "fit":
            check_checkpoints(self.trainer)
        expect_common_figures(self.trainer)
        if self.sampler_backend is not None:
            self.sampler_backend.check(self.policy_config)

    def configure_model(self) -> None:
        """Loads the policy, once; Lightning calls this in every stage."""
        if self.policy is None:
            if not torch.cuda.is_available():
                keep_freed_memory()
            self.policy = load_policy(self.policy_config).train()
            copy = make_reference(self.policy, self.policy_config.adapter) if self.needs_reference else None
            # In a list, so that the frozen copy is no submodule: it is neither trained nor saved.
            self._reference_copy = [] if copy is None else [copy]
            if self.device_mesh is not None:
                self._whole = shard_policy(self.model, self.policy_config.adapter, self.device_mesh)
                # Else Lightning would pass over names in a checkpoint that it does not know.
                self.strict_loading = True

    @property
    def needs_reference(self) -> bool:
        """Whether training compares with the frozen start policy; a copy of all weights is made only then."""
        return False

    @property
    def model(self) -> nn.Module:
        """The loaded policy.

        Raises:
            RuntimeError: It is not loaded yet.
        """
        if self.policy is None:
            raise RuntimeError("the policy is not loaded yet; call configure_model() first, as the Trainer does")
        return self.policy

    def offloading(self) -> AbstractContextManager[Any]:
        """Within it, what the backward pass needs goes to the host's memory, where ``offload_activations`` is set."""
        return offloaded_activations(self.model) if self.offload_activations else nullcontext()

    @property
    def reference_copy(self) -> nn.Module | None:
        """The frozen second copy, for full weights only."""
        if not self._reference_copy:
            return None
        return self._reference_copy[0].to(self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trained weights."""
        config = self.optimizer_config
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = config.over(weights)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, config.factor)}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what is left to global generators (LoRA dropout) in this step, so that a resumed run repeats it."""
        del batch
        torch.manual_seed(derive_seed("step", self.policy_config.seed, self.trainer.current_epoch, batch_idx))

    @property
    def policy_name(self) -> str:
        """Names the policy as it is now, so that rollouts can be told to be its own; as :meth:`whole_policy`."""
        with self.whole_policy() as whole:
            state = trainable_state(self.model) if self._whole is None else dict(whole.named_parameters())
            return f"{self.policy_config} {fingerprint(state)}"

    @property
    def learning_rate(self) -> float:
        """The learning rate of the coming optimiser step."""
        return float(self._optimizer().param_groups[0]["lr"])

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def apply_gradients(self) -> float:
        """Clips, steps, and clears; the gradient of the whole batch has been gathered by then.

        A step whose gradient is not finite is skipped: weights, optimiser and schedule stay as they are.

        Returns:
            The gradient's norm before clipping.

        Raises:
            NonFiniteGradientError: Too many steps in a row were skipped; the state is saved before.
        """
        optimizer = self._optimizer()
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        clip = self.optimizer_config.gradient_clip
        norm = common_value(nn.utils.clip_grad_norm_(weights, clip if clip > 0 else math.inf))
        taken = self.finite_steps.takes(norm)
        self.log("train/skipped_steps", float(self.finite_steps.skipped), batch_size=1)
        if not taken:
            self._skip_step()
            return norm
        optimizer.step()
        optimizer.zero_grad()
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LRScheduler)
        schedule.step()
        return norm

    def _skip_step(self) -> None:
        """Forgets a gradient that is not finite; ends the run where that has happened too often."""
        steps = self.finite_steps
        why = which_are_not_finite((name, weight.grad) for name, weight in self.model.named_parameters())
        self._optimizer().zero_grad()
        if not steps.exhausted:
            if steps.skipped == 1:
                rank_zero_warn(f"an optimiser step is skipped after step {self.global_step}: {why}")
            return
        saved = self.interruption.save_stopped(self.trainer)
        raise NonFiniteGradientError(
            f"{steps.in_a_row} optimiser steps in a row were skipped, the last in phase {self.current_epoch}: {why}. "
            f"The weights of step {self.global_step} are intact and {saved}, or with an earlier checkpoint, once you "
            "have lowered model.optimizer.learning_rate or looked at the rewards in the trajectories of this phase"
        )

    @contextmanager
    def sampler(self, sampling: SamplingConfig, prefill_tokens: int) -> Iterator[Sampler]:
        """Lends the policy as a sampler, in evaluation mode, or the backend with the policy's present weights."""
        with self._in_evaluation(), self.whole_policy() as model:
            if self.sampler_backend is None:
                yield TransformersSampler(model, self._stop_ids(), sampling, prefill_tokens)
                return
            with self.sampler_backend.lend(self._lent(model), sampling) as sampler:
                yield sampler

    @contextmanager
    def sampler_beside(self, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Lends the backend with the policy's present weights, for use while the policy is trained.

        To be entered where the policy is at rest; it may be left in another thread. Only for a backend that
        :func:`~pact_lightning.rollout.samplers.base.keeps_weights`.
        """
        assert keeps_weights(self.sampler_backend)
        assert self.sampler_backend is not None
        with ExitStack() as stack:
            with self._in_evaluation():
                sampler = stack.enter_context(self.sampler_backend.lend(self._lent(self.model), sampling))
            yield sampler

    @contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def _lent(self, model: nn.Module) -> LentPolicy:
        return LentPolicy(model, self.policy_config, tuple(self._stop_ids()))

    @contextmanager
    def whole_policy(self) -> Iterator[nn.Module]:
        """Lends the policy with all its weights, sharded or not.

        All processes have to call this together; within it, each may call it again by itself.
        """
        if self._whole is None:
            yield self.model
            return
        with self._whole.lend(self.model) as model:
            yield model

    def export(self, folder: Path) -> None:
        """Write weights, config and tokenizer to a folder that transformers can load.

        A LoRA adapter is merged into its base model; a QLoRA adapter is written unmerged, since merging would round
        the 4-bit base again. All processes have to call this together; rank 0 writes.

        Args:
            folder: Output folder; created if it does not exist.
        """
        from peft import PeftModel

        with self.whole_policy() as whole:
            if not self.trainer.is_global_zero:
                return
            model: Any = whole
            if isinstance(model, PeftModel) and self.policy_config.adapter == "lora":
                model = model.merge_and_unload()
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _stop_ids(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return sorted({self.renderer.end_of_turn, *([eos] if isinstance(eos, int) else [])})

    def validation_step(self, batch: "list[Evaluated]", batch_idx: int) -> None:
        """Scores rollouts."""
        self._evaluate(batch, "validation")

    def test_step(self, batch: "list[Evaluated]", batch_idx: int) -> None:
        """Scores rollouts."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: "list[Evaluated]", batch_idx: int) -> list[dict[str, Any]]:
        """Rollouts as records in OpenAI message format; also written to ``trajectories/predict.jsonl``."""
        return self._write(batch, "predict")

    def on_validation_epoch_end(self) -> None:
        """Logs the scores and remembers them for the table at the end of the fit."""
        scores = self._finish_evaluation("val")
        if self.trainer.sanity_checking:
            for logger in self.trainer.loggers:  # Lightning logs nothing in its sanity check, which is our start
                logger.log_metrics({f"val/{name}": value for name, value in scores.items()}, step=0)
        if self.trainer.state.fn == "fit":
            self.history.append((self.finished_phases, scores))
        else:
            self._report("validation", scores)

    def on_test_epoch_end(self) -> None:
        """Logs the scores."""
        self._report("test", self._finish_evaluation("test"))

    def on_fit_end(self) -> None:
        """Prints the first and the last validation side by side, and where the run's files are."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # all processes have to ask together
        if not self.trainer.is_global_zero:
            return
        rank_zero_info(f"metrics and trajectories of this run: {folder}")
        if len(self.history) > 1:
            title = f"Validation: {self._data.evaluation}"
            Console().print(comparison_table(title, self.history, self.evaluation.shares))

    @property
    def _data(self) -> "TaskDataModule":
        data: TaskDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning does not declare it
        return data

    def _report(self, stage: str, scores: Scores) -> None:
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # all processes have to ask together
        if self.trainer.is_global_zero:
            report_scores(Path(folder), stage, scores, self.evaluation.shares, self._data)
            rank_zero_info(f"scores and trajectories of this {stage}: {folder}")

    def _evaluate(self, batch: "list[Evaluated]", name: str) -> None:
        for evaluated in batch:
            self.evaluation.update(evaluated.task, evaluated.trajectory)
        if self.trainer.state.fn == "fit":
            name = f"{name}-{self.finished_phases:04d}"
        self._write(batch, name)

    @property
    def finished_phases(self) -> int:
        """Within a validation: the counters still stand at the phase that has just been trained."""
        return 0 if self.trainer.sanity_checking else self.trainer.current_epoch + 1

    def _write(self, batch: "list[Evaluated]", name: str) -> list[dict[str, Any]]:
        rank = f"-rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        return write_rollouts(Path(self.trainer.log_dir or self.trainer.default_root_dir), f"{name}{rank}", batch)

    def _finish_evaluation(self, prefix: str) -> Scores:
        scores = self.evaluation.compute()
        self.evaluation.reset()
        if not self.trainer.sanity_checking:
            self.log_dict({f"{prefix}/{name}": value for name, value in scores.items()})
        return scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the scores and the skipped steps so far, so that a resumed run still knows its start."""
        checkpoint["skipped_steps"] = [self.finite_steps.skipped, self.finite_steps.in_a_row]
        checkpoint["validation_history"] = [[phase, dict(scores)] for phase, scores in self.history]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the scores and the count of skipped steps of the run that is resumed."""
        self.finite_steps.skipped, self.finite_steps.in_a_row = checkpoint.get("skipped_steps", (0, 0))
        self.history = [(int(phase), dict(scores)) for phase, scores in checkpoint.get("validation_history", [])]
        if self.trainer.state.fn == "fit":
            # The start is known already; the check before training would take the resumed policy for it.
            self.trainer.num_sanity_val_steps = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]  # narrower
        """The trained weights only."""
        del args, kwargs
        return trainable_state(self.model) if self._whole is None else sharded_state(self.model, _PREFIX)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads trained weights, saved sharded or not; names and shapes must fit."""
        del strict, assign
        load_trainable_state(self.model, without_prefix(self.model, state_dict, _PREFIX))
        return nn.modules.module._IncompatibleKeys([], [])

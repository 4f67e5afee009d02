"""PolicyModule: the base of all training methods, with policy, optimiser, sampling and checkpoints.

Scores and trajectories of evaluations come from its own base,
:class:`~pact_lightning.training.evaluation.EvaluatedModule`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pact_lightning.callbacks.annealing import planned_epochs
from pact_lightning.export.folder import write_export
from pact_lightning.export.policy_renderer import renderer_of
from pact_lightning.export.trained import TrainedPolicy, count_tasks
from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.policy.attention.choice import AttentionChoice, AttentionPath, check_path
from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer
from pact_lightning.policy.logprobs import decoder_and_head
from pact_lightning.policy.memory import keep_freed_memory, offloaded_activations
from pact_lightning.policy.own_attention import attends_by_plan
from pact_lightning.policy.packing import PackingMode
from pact_lightning.policy.reference import make_reference
from pact_lightning.policy.saving import Form, usual_form
from pact_lightning.policy.sharding import WholePolicy, shard_policy
from pact_lightning.policy.state_dict import (
    SHARDED_PREFIX,
    fingerprint,
    load_trainable_state,
    sharded_state,
    trainable_state,
    without_prefix,
)
from pact_lightning.policy.threads import FreeThreads
from pact_lightning.resume.checkpoint_files import use_whole_files
from pact_lightning.resume.exact_resume import ExactResume
from pact_lightning.resume.interruption import Interruption
from pact_lightning.resume.recipe_change import MADE_BY
from pact_lightning.resume.run_folder import RunFolder
from pact_lightning.rollout.samplers.base import LentPolicy, Sampler, SamplerBackend, SamplingConfig, keeps_weights
from pact_lightning.rollout.samplers.own_cache import OwnCacheSampler
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.training.evaluation import EvaluatedModule
from pact_lightning.training.recipe_checks import check_forwards
from pact_lightning.training.start import load_start, start_config
from pact_lightning.training.trainer_checks import check_checkpoints, check_monitors, check_trainer
from pact_lightning.update.optimizer import (
    FiniteSteps,
    NonFiniteGradientError,
    OptimizerConfig,
    take_over_settings,
    take_step,
)
from pact_lightning.utils.processes import expect_common_figures, run_folder
from pact_lightning.utils.seeds import derive_seed


class PolicyModule(EvaluatedModule):
    """A policy with its optimiser; subclasses define the training step.

    Checkpoints hold the trained weights only (the adapter, or all weights), optimiser and counters.

    Args:
        policy: Which policy to train.
        optimizer: How to train it.
        max_tokens_per_forward: Tokens of one forward, which holds one sequence at least; what a batch needs beyond
            that goes into further forwards, with the same result.
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
        super().__init__(metrics or ())
        check_forwards(head_chunk, max_tokens_per_forward)
        policy = start_config(policy)
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
        self.renderer = renderer_of(policy, self.tokenizer)
        self.policy: nn.Module | None = None
        self._reference_copy: list[nn.Module] = []
        self._whole: WholePolicy | None = None
        self.interruption = Interruption()
        self.run_folder = RunFolder(self.method, {"model": {"policy": asdict(policy), "optimizer": asdict(optimizer)}})

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse what cannot be honoured, and bring the callbacks that make a fit safe to interrupt.

        Lightning calls this first, in every stage: before callbacks set up what they change.
        """
        check_trainer(self.trainer)
        use_whole_files(self.trainer)
        ExactResume.prepare(self.trainer)
        if self.trainer.state.fn != "fit":
            return []
        return [self.run_folder, ExactResume(), self.interruption]

    def setup(self, stage: str) -> None:
        """Refuse settings that cannot be honoured, before the policy is loaded."""
        check_path(self.attention.path, self.trainer.strategy.root_device.type)
        if stage == "fit":
            check_checkpoints(self.trainer)
            check_monitors(self.trainer, self.metric_names)
        expect_common_figures(self.trainer)
        if self.sampler_backend is not None:
            self.sampler_backend.check(self.policy_config)

    def configure_model(self) -> None:
        """Load the policy, once; Lightning calls this in every stage."""
        if self.policy is None:
            threads = None if torch.cuda.is_available() else FreeThreads()
            if threads is not None:
                keep_freed_memory()
            self.policy = load_policy(self.policy_config).train()
            if threads is not None:
                threads.follow(decoder_and_head(self.policy)[0])
            load_start(self.policy, self.policy_config)
            if self.needs_reference:
                started = self.policy_config.start_from is not None
                copy = make_reference(self.policy, self.policy_config.adapter, started=started)
                # In a list, so that the frozen copy is no submodule: it is neither trained nor saved.
                self._reference_copy = [] if copy is None else [copy]
            if self.device_mesh is not None:
                self._whole = shard_policy(self.model, self.policy_config.adapter, self.device_mesh)
                # Else Lightning would pass over names in a checkpoint that it does not know.
                self.strict_loading = True

    @property
    def method(self) -> str:
        """The name of the package's class that trains, the module's own or the one that it extends."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__.startswith("pact_lightning."))

    @property
    def model_name(self) -> str:
        """The name of the policy's model, for files of results."""
        return self.policy_config.model

    @property
    def needs_reference(self) -> bool:
        """True if training compares with the frozen start policy; only then all weights are copied."""
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
        """Return a context in which activations go to the host's memory, if ``offload_activations`` is set."""
        return offloaded_activations(self.model) if self.offload_activations else nullcontext()

    @property
    def reference_copy(self) -> nn.Module | None:
        """The frozen part of the start policy: all of it for full weights, an adapter it started from, or nothing."""
        if not self._reference_copy:
            return None
        return self._reference_copy[0].to(self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make AdamW over the trained weights, with its schedule."""
        config = self.optimizer_config
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = config.over(weights)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, config.factor)}}

    def on_train_start(self) -> None:
        """Count the phases that ``max_steps`` allows where ``max_epochs`` is left open: progress bars show them."""
        if self.trainer.max_epochs == -1:
            self.trainer.fit_loop.max_epochs = planned_epochs(self.trainer) or -1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global generators, which LoRA dropout uses, so that a resumed run repeats this step."""
        del batch
        torch.manual_seed(derive_seed("step", self.policy_config.seed, self.trainer.current_epoch, batch_idx))

    @property
    def policy_name(self) -> str:
        """The name of the present weights, by which rollouts are told to be theirs; see :meth:`whole_policy`."""
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
        """Clip, step, and clear; a step whose gradient is not finite is skipped.

        Returns:
            The gradient's norm before clipping.

        Raises:
            NonFiniteGradientError: Too many steps in a row were skipped; the state is saved before.
        """
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LRScheduler)
        clip, steps = self.optimizer_config.gradient_clip, self.finite_steps
        norm, skipped = take_step(self._optimizer(), schedule, self.model, clip=clip, steps=steps)
        self.log("train/skipped_steps", float(steps.skipped), batch_size=1)
        if skipped and steps.exhausted:
            saved = self.interruption.save_stopped(self.trainer)
            raise NonFiniteGradientError(
                f"{steps.in_a_row} optimiser steps in a row were skipped, the last one in phase {self.current_epoch}: "
                f"{skipped}. The weights of step {self.global_step} are intact and {saved}, or with an earlier "
                "checkpoint, after you have lowered model.optimizer.learning_rate or checked the rewards in the "
                "trajectories of this phase"
            )
        if skipped and steps.skipped == 1:
            rank_zero_warn(f"skipped the optimiser step after step {self.global_step}: {skipped}")
        return norm

    @contextmanager
    def sampler(self, sampling: SamplingConfig, prefill_tokens: int) -> Iterator[Sampler]:
        """Lend the policy as a sampler, in evaluation mode, or the backend with the policy's present weights."""
        with self._in_evaluation(), self.whole_policy() as model:
            if self.sampler_backend is None:
                kind = TransformersSampler if attends_by_plan(decoder_and_head(model)[0]) else OwnCacheSampler
                yield kind(model, self._stop_ids(), sampling, prefill_tokens)
                return
            with self.sampler_backend.lend(self._lent(model), sampling) as sampler:
                yield sampler

    @contextmanager
    def sampler_beside(self, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Lend the backend with the policy's present weights, for use while the policy is trained.

        Enter it while the policy is at rest; it may be left in another thread. The backend must keep weights of its
        own (:func:`~pact_lightning.rollout.samplers.base.keeps_weights`).
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
        """Lend the policy with all its weights, sharded or not.

        All processes have to call this together; within it, each may call it again by itself.
        """
        if self._whole is None:
            yield self.model
            return
        with self._whole.lend(self.model) as model:
            yield model

    def export(self, folder: Path, form: Form | None = None) -> None:
        """Write weights, config, tokenizer and card to a folder; the policy stays as it is.

        All processes have to call this together; rank 0 writes, as
        :func:`~pact_lightning.export.folder.write_export`.

        Args:
            folder: Output folder; an earlier export in it is replaced.
            form: ``merged`` or ``adapter``; by default merged, but for ``qlora`` the adapter.
        """
        run = run_folder(self.trainer)  # all processes have to ask together
        with self.whole_policy() as whole:
            if self.trainer.is_global_zero:
                write_export(self._trained(whole, run), folder, form or usual_form(self.policy_config))

    def _trained(self, whole: nn.Module, run: Path) -> TrainedPolicy:
        weights = dict(whole.named_parameters())
        return TrainedPolicy(
            self.policy_config,
            {name: weights[name].detach() for name in trainable_state(self.model)},
            self.method,
            self.run_folder.recipe,
            self.trainer.fit_loop.epoch_progress.current.completed,
            self.global_step,
            self.history,
            count_tasks(run, self.history),
        )

    def _stop_ids(self) -> list[int]:
        return sorted(self.renderer.end_ids)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps, and the scores so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_steps"] = [self.finite_steps.skipped, self.finite_steps.in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the count of skipped steps and the scores of the run that is resumed, and the optimiser's settings."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(MADE_BY, {}).get("recipe", {}).get("model", {})
        own = type(self).configure_optimizers is PolicyModule.configure_optimizers
        if self.trainer.state.fn == "fit" and own:
            take_over_settings(checkpoint, self.optimizer_config, saved.get("init_args", saved).get("optimizer"))
        self.finite_steps.skipped, self.finite_steps.in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def state_dict(  # type: ignore[override]  # narrower
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """Return the trained weights only, added to ``destination`` under ``prefix`` as torch's modules do."""
        del args, keep_vars
        state = trainable_state(self.model) if self._whole is None else sharded_state(self.model, SHARDED_PREFIX)
        found: dict[str, Tensor] = {} if destination is None else destination
        found.update({prefix + name: weight for name, weight in state.items()})
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load trained weights, saved sharded or not; names and shapes must fit."""
        del strict, assign
        load_trainable_state(self.model, without_prefix(self.model, state_dict, SHARDED_PREFIX))
        return nn.modules.module._IncompatibleKeys([], [])

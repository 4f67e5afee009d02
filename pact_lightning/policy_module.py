"""What every training method here shares: policy, tokenizer, optimiser, adapter-only checkpoints, manual steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer
from pact_lightning.policy.packing import PackingMode
from pact_lightning.policy.reference import make_reference
from pact_lightning.policy.state_dict import load_trainable_state, trainable_state


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping.

    Attributes:
        learning_rate: Peak learning rate; 1e-6 is the paper's for full weights [P], adapters need more.
        weight_decay: AdamW's weight decay [C].
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        gradient_clip: Largest norm of the gradient of one optimiser step [C]; 0 switches clipping off.
        schedule: ``constant`` [P], or ``cosine`` down to zero over ``schedule_steps``.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule_steps: Optimiser steps of the cosine schedule; without meaning for ``constant``.
    """

    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    gradient_clip: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    schedule_steps: int = 0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: A value makes no sense.
        """
        if self.learning_rate <= 0 or self.gradient_clip < 0:
            raise ValueError("optimizer.learning_rate must be above 0 and optimizer.gradient_clip at least 0")
        if self.schedule == "cosine" and self.schedule_steps < 1:
            raise ValueError("optimizer.schedule 'cosine' needs optimizer.schedule_steps, the run's length in steps")

    def factor(self, step: int) -> float:
        """Learning rate at an optimiser step, as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(step / self.schedule_steps, 1.0)))


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
    """

    def __init__(
        self,
        policy: PolicyConfig,
        optimizer: OptimizerConfig,
        max_tokens_per_forward: int,
        packing: PackingMode,
        head_chunk: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.policy_config = policy
        self.optimizer_config = optimizer
        self.max_tokens_per_forward = max_tokens_per_forward
        self.packing: PackingMode = packing
        self.head_chunk = head_chunk
        # Loaded at once: cheap, and a missing model is told before anything else starts.
        self.tokenizer = load_tokenizer(policy)
        self.renderer = ChatRenderer(TextCodec(self.tokenizer))
        self.policy: nn.Module | None = None
        self._reference_copy: list[nn.Module] = []

    def configure_model(self) -> None:
        """Loads the policy, once; Lightning calls this in every stage."""
        if self.policy is None:
            self.policy = load_policy(self.policy_config).train()
            copy = make_reference(self.policy, self.policy_config.adapter)
            # In a list, so that the frozen copy is no submodule: it is neither trained nor saved.
            self._reference_copy = [] if copy is None else [copy]

    @property
    def model(self) -> nn.Module:
        """The loaded policy.

        Raises:
            RuntimeError: It is not loaded yet.
        """
        if self.policy is None:
            raise RuntimeError("the policy is not loaded yet; call configure_model() first, as the Trainer does")
        return self.policy

    @property
    def reference_copy(self) -> nn.Module | None:
        """The frozen second copy, for full weights only."""
        if not self._reference_copy:
            return None
        return self._reference_copy[0].to(self.device)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the trained weights."""
        config = self.optimizer_config
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, config.factor)}}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the coming optimiser step."""
        return float(self.optimizers().param_groups[0]["lr"])

    def apply_gradients(self) -> float:
        """Clips, steps, and clears; the gradient of the whole batch has been gathered by then.

        Returns:
            The gradient's norm before clipping.

        Raises:
            RuntimeError: The gradient is not finite; no step is taken, so the last weights are intact.
        """
        optimizer = self.optimizers()
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        clip = self.optimizer_config.gradient_clip
        norm = float(nn.utils.clip_grad_norm_(weights, clip if clip > 0 else math.inf))
        if not math.isfinite(norm):
            optimizer.zero_grad()
            raise RuntimeError(
                f"the gradient of optimiser step {self.global_step} is not finite; lower the learning rate, or resume "
                "from the last checkpoint with --ckpt_path last"
            )
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        return norm

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch where it is: packs move to the device one by one, when they are run."""
        del device, dataloader_idx
        return batch

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The trained weights only."""
        del args, kwargs
        return trainable_state(self.model)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads trained weights; names and shapes must fit."""
        del strict, assign
        load_trainable_state(self.model, state_dict)
        return nn.modules.module._IncompatibleKeys([], [])

"""Memory of an optimiser step: the training pass itself, run on the meta device, where tensors have no values.

No formula per layer stands here that could fall behind the code: what is kept for the backward pass, what is alive at
the same time and when it is freed is counted while the real forward and the real backward pass run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from pact_lightning.plan.attention_kernel import AttentionKernels, PlannedAttention, run_backward
from pact_lightning.plan.lengths import PlannedPack
from pact_lightning.plan.live_bytes import LiveBytes
from pact_lightning.policy.attention_choice import AttentionPath
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.reference import reference_policy


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """How a pack is scored.

    Attributes:
        head_chunk: Tokens whose logits exist at the same time.
        with_entropy: Whether there is an entropy term.
        with_reference: Whether there is a KL term.
        attention: How packed rows attend.
    """

    head_chunk: int
    with_entropy: bool
    with_reference: bool
    attention: AttentionPath = "auto"


@dataclass(frozen=True, slots=True)
class UpdateBytes:
    """Bytes of one pack, without what is there all the time.

    Attributes:
        saved: Kept from the forward for the backward pass.
        working: The most that is alive beyond that at any moment, gradients left out where they were there before.
        step: The most that the optimiser's step takes for itself.
    """

    saved: int
    working: int
    step: int

    @property
    def peak(self) -> int:
        """The most at any moment before the optimiser's step."""
        return self.saved + self.working


def update_bytes(
    skeleton: nn.Module, planned: PlannedPack, config: ScoringConfig, *, device_type: str, gradients_exist: bool
) -> UpdateBytes:
    """Runs a pack forward and backward and takes a step, all on the meta device.

    Args:
        skeleton: The policy on the meta device.
        planned: The pack.
        config: How it is scored.
        device_type: Whose attention kernels are taken.
        gradients_exist: Whether an earlier pack of the same step has left gradients. Otherwise they come to be layer
            by layer, while what was saved is freed.
    """
    trained = [weight for weight in skeleton.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight) if gradients_exist else None
    with AttentionKernels(device_type), LiveBytes() as live:
        live.hold([*skeleton.parameters(), *skeleton.buffers()])
        live.hold([weight.grad for weight in trained if weight.grad is not None])
        before = live.now
        settings: dict[str, Any] = {
            "only": planned.masks,
            "chunk_size": config.head_chunk,
            "with_entropy": config.with_entropy,
            "attention": PlannedAttention(config.attention, device_type),
        }
        scores = token_logprobs(skeleton, planned.pack, **settings)
        loss = torch.stack([score.logp.sum() for score in scores]).sum()
        if config.with_entropy:
            loss = loss + torch.stack([score.entropy.sum() for score in scores if score.entropy is not None]).sum()
        saved = live.now - before
        if config.with_reference:
            frozen_copy = None if isinstance(skeleton, PeftModel) else skeleton
            with reference_policy(skeleton, frozen_copy) as model:
                reference = token_logprobs(model, planned.pack, **(settings | {"with_entropy": False}))
            loss = loss + reference[0].logp.sum()
        run_backward(loss)
        peak = live.peak - before
        del scores, loss
        step = _step_bytes(live, trained, device_type)
    for weight in trained:
        weight.grad = None
    return UpdateBytes(saved, peak - saved, step)


def _step_bytes(live: LiveBytes, trained: list[nn.Parameter], device_type: str) -> int:
    """What AdamW takes beside its moments; on CUDA it goes over all weights at once."""
    optimizer = torch.optim.AdamW(trained, foreach=device_type == "cuda")
    optimizer.step()  # the first one makes the moments
    live.mark()
    before = live.now
    optimizer.step()
    return live.peak - before

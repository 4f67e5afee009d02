"""A variant of a fit, and how many phases of it, on the simulated card and on the CPU; prints their difference."""

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from simulated_card import NAME, CardStrategy, add_card
from small_run import OPTIMIZER, AfterStep

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.resume.interruption import NAME as STOPPED
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.training.sft_module import SFTModule
from pact_lightning.training.trace_datamodule import TraceDataModule

LIMITS = RolloutLimits(max_turns=2, max_new_tokens_per_turn=24, max_trajectory_tokens=200, rows=8)
TERMS = Coefficients(sft=0.1, kl=0.01, entropy=0.01)
TASKS = {"train": BundledTasks("train", 4), "validation": BundledTasks("validation", 2)}


def policy(**settings):
    return PolicyConfig(**{"dtype": "float32", "adapter": "lora", "lora_r": 4, "lora_alpha": 8} | settings)


def pact(policy_config, **settings):
    data = RolloutDataModule(
        **TASKS,
        prompts_per_phase=4,
        prompts_per_step=2,
        rollouts_per_prompt=2,
        limits=LIMITS,
        temperature=1.4,
        max_prompt_tokens=600,
    )
    # The other path would round otherwise on the CPU.
    given = {"coefficients": TERMS, "optimizer": OPTIMIZER, "attention": "two_calls"} | settings
    return PACTModule(policy=policy_config, **given), data


def sft(policy_config):
    data = TraceDataModule(**TASKS, batch_size=2, limits=LIMITS)
    return SFTModule(policy=policy_config, optimizer=OPTIMIZER), data


VARIANTS = {
    "lora": lambda: pact(policy()),
    "full weights": lambda: pact(policy(adapter="full")),
    "bfloat16": lambda: pact(policy(dtype="bfloat16")),
    "correction, many packs": lambda: pact(policy(), importance_cap=2.0, max_tokens_per_forward=1200),
    "rows, cross": lambda: pact(policy(), packing="rows", ratio_context="cross"),
    "anchors": lambda: pact(policy(), anchor_probability=1.0, importance_cap=2.0),
    "sft": lambda: sft(policy()),
}


class Weights(pl.Callback):
    """The trained weights at the end of a fit, and where they were."""

    def on_train_end(self, trainer, pl_module):
        weights = [weight for weight in pl_module.model.parameters() if weight.requires_grad]
        self.devices = {weight.device.type for weight in weights}
        self.values = [weight.detach().cpu().float() for weight in weights]


def fit(folder, make, *callbacks, on_card, phases, ckpt_path=None):
    module, data = make()
    where = {"strategy": CardStrategy()} if on_card else {"accelerator": "cpu"}
    ended = Weights()
    annealing = [AnnealingCallback()] if isinstance(module, PACTModule) else []
    trainer = pl.Trainer(
        **where,
        max_epochs=phases,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        callbacks=[ModelCheckpoint(folder, save_last=True), *annealing, ended, *callbacks],
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    assert ended.devices == {NAME if on_card else "cpu"}
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return ended.values, scores


def difference(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def compare(name, phases):
    """A variant on both devices, and on the card interrupted in its last phase, if it has two."""
    make = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        card, scores = fit(Path(folder) / "card", make, on_card=True, phases=phases)
        plain, expected = fit(Path(folder) / "cpu", make, on_card=False, phases=phases)
        found = {"variant": name, "from_cpu": difference(card, plain), "scores": [scores, expected]}
        if phases > 1:
            stopped = Path(folder) / "stopped"
            with suppress(SystemExit):
                fit(stopped, make, AfterStep(1, 0), on_card=True, phases=phases)
            resumed, _ = fit(stopped, make, on_card=True, phases=phases, ckpt_path=str(stopped / STOPPED))
            found["resumed"] = difference(card, resumed)
    return found


def main():
    name, phases = sys.argv[1], int(sys.argv[2])
    add_card()
    with pytest.raises(RuntimeError, match="to be on the same device"):  # else it would find nothing
        torch.ones(2, device=NAME) + torch.ones(2)
    print(json.dumps(compare(name, phases)), flush=True)


if __name__ == "__main__":
    main()

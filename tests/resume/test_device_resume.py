"""Runs on a device that are interrupted go on as the undisturbed one, and checkpoints go from device to device."""

import os
from contextlib import suppress

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's products are deterministic with it only
import lightning.pytorch as pl
import pytest
import torch
from hand_made import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from on_device import far
from small_run import AfterStep

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.resume.interruption import NAME
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.optimizer import OptimizerConfig

SETTINGS = {"model": "bundled", "lora_r": 4, "lora_alpha": 8, "dtype": "float32"}
WAYS = {
    # Dropout draws from the device's own generator.
    "lora": (SETTINGS | {"adapter": "lora", "lora_dropout": 0.1}, 32),
    "qlora, 8-bit Adam": (SETTINGS | {"adapter": "qlora", "gradient_checkpointing": True}, 8),
    "full weights, 8-bit Adam": (SETTINGS | {"adapter": "full", "dtype": "bfloat16"}, 8),
}


class Seen(pl.Callback):
    """The trained weights and the optimiser's moments, when training begins and at its end."""

    def on_train_start(self, trainer, pl_module):
        self.began, self.moments = trained(pl_module), moments(trainer)

    def on_train_end(self, trainer, pl_module):
        self.ended, self.last_moments = trained(pl_module), moments(trainer)
        self.devices = {weight.device.type for weight in pl_module.model.parameters()}


def trained(module):
    return {name: w.detach().clone().cpu() for name, w in module.model.named_parameters() if w.requires_grad}


def moments(trainer):
    """Each moment's device and values; bitsandbytes keeps small tensors' in float32."""
    names = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
    state = trainer.optimizers[0].state
    found = [entry[name] for entry in state.values() for name in names if name in entry]
    return [(value.device.type, value.detach().clone().cpu()) for value in found]


def fit(folder, device, way, *callbacks, phases=2, ckpt_path=None, deterministic=True):
    policy, bits = WAYS[way]
    module = PACTModule(policy=PolicyConfig(**policy), optimizer=OptimizerConfig(3e-4, bits=bits))
    limits = RolloutLimits(max_turns=2, max_new_tokens_per_turn=24, max_trajectory_tokens=200, rows=8)
    data = RolloutDataModule(
        train=BundledTasks("train", 4),
        validation=BundledTasks("validation", 1),
        prompts_per_phase=4,
        prompts_per_step=2,
        rollouts_per_prompt=2,
        limits=limits,
        temperature=1.4,
    )
    seen = Seen()
    trainer = quiet_trainer(
        accelerator=device,
        devices=1,
        deterministic=deterministic,
        max_epochs=phases,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True), seen, *callbacks],
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen.devices == {device}
    return seen


@pytest.mark.parametrize(
    ("device", "way"),
    [
        *(pytest.param("cpu", way, marks=pytest.mark.slow) for way in WAYS),  # of a LoRA see test_interruption
        *(pytest.param("cuda", way, marks=pytest.mark.gpu) for way in WAYS),
    ],
)
def test_an_interrupted_run_ends_bit_for_bit_as_the_undisturbed_one(device, way, tmp_path):
    """With ``trainer.deterministic``, without which CUDA adds up in any order."""
    whole = fit(tmp_path / "whole", device, way)
    with suppress(SystemExit):
        fit(tmp_path / "stopped", device, way, AfterStep(1, 0))
    resumed = fit(tmp_path / "stopped", device, way, ckpt_path=str(tmp_path / "stopped" / NAME))
    assert any(not torch.equal(whole.ended[name], weight) for name, weight in whole.began.items())
    for name, weight in whole.ended.items():
        assert torch.equal(resumed.ended[name], weight), name


@pytest.mark.gpu
def test_an_interrupted_run_ends_nearly_as_the_undisturbed_one_without_determinism(tmp_path):
    whole = fit(tmp_path / "whole", "cuda", "lora", deterministic=False)
    with suppress(SystemExit):
        fit(tmp_path / "stopped", "cuda", "lora", AfterStep(1, 0), deterministic=False)
    path = str(tmp_path / "stopped" / NAME)
    resumed = fit(tmp_path / "stopped", "cuda", "lora", ckpt_path=path, deterministic=False)
    for name, weight in whole.ended.items():
        assert far(resumed.ended[name] - whole.began[name], weight - whole.began[name]) < 0.05, name


@pytest.mark.parametrize("way", ["lora", "full weights, 8-bit Adam"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("cpu", "cpu"), *(pytest.param(*pair, marks=pytest.mark.gpu) for pair in (("cpu", "cuda"), ("cuda", "cpu")))],
)
def test_a_checkpoint_goes_on_on_another_device(first, second, way, tmp_path):
    earlier = fit(tmp_path, first, way, phases=1)
    later = fit(tmp_path, second, way, phases=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert later.began.keys() == earlier.ended.keys()
    assert all(torch.equal(later.began[name], weight) for name, weight in earlier.ended.items())
    assert any(not torch.equal(later.ended[name], weight) for name, weight in later.began.items())
    assert len(later.moments) == len(earlier.last_moments) > 20
    for (device, value), (_, known) in zip(later.moments, earlier.last_moments, strict=True):
        assert device == second
        assert torch.equal(value, known)
    if way != "lora":
        assert torch.uint8 in {value.dtype for _, value in later.moments}

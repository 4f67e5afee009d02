"""Code that the tests of several processes run, in one process or, started as a script, in two.

The script imports everything once; both processes are forked from there.
"""

import faulthandler
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import peft  # noqa: F401  # imported when a policy is loaded; once for both processes
import torch
from hand_made import FULL, LORA, STILL, Loader, RecordingModule, bundled_renderer, hand_made_group, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from small_run import AfterStep
from torch.distributed.tensor import DTensor

from pact_lightning.callbacks.export import ExportPolicy
from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.training.sft_module import SFTModule
from pact_lightning.training.trace_datamodule import TraceDataModule
from pact_lightning.update.optimizer import OptimizerConfig

DEADLINE_S = 600
"""A process that waits for another one for ever ends itself, with a traceback."""

TIGHT = 850
"""Tokens of one forward in which any prompt of the steps fits with its trace and its longest rollout, and not two."""

FEW = 12
"""Tokens of a turn where runs of two processes are compared with each other: each token is a forward of both."""

RENDERER = bundled_renderer()


def _flat(index):
    """A group of which nothing can be learned: no variance, and no trace."""
    group = hand_made_group(RENDERER, index)
    first = group.trajectories[0]
    flat = make_group(group.task, [first, replace(first)], CreditConfig(), position=index)
    flat.anchored = "drawn"
    return flat


def _broken(index):
    return hand_made_group(RENDERER, index, advantages=[[float("nan")] * 3, [0.0] * 2, [0.0]])


def steps():
    """Batches of one optimiser step; of two processes, the second one takes every other group."""
    whole = [hand_made_group(RENDERER, index) for index in range(4)]
    for number, group in enumerate(whole):  # ratios up to about exp(0.5), ..., exp(2)
        group.old_logps = [(number + 1) * group.sampled_logps(sample) for sample in range(3)]
    return {
        "as many packs": whole,
        "fewer packs": [whole[0], _flat(1), whole[2], hand_made_group(RENDERER, 3, anchored="drawn")],
        "one idle": [whole[0], _flat(1), whole[2], _flat(3)],
        "all idle": [_flat(index) for index in range(4)],
        "one broken": [whole[0], _broken(1), whole[2], whole[3]],
        "afterwards": whole,
    }


class Steps(pl.LightningDataModule):
    """The batches as a phase, shared by the processes."""

    def train_dataloader(self):
        return _StepLoader(self)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


class _StepLoader(Loader):
    def __init__(self, data):
        super().__init__(list(steps().values()))
        self.data = data

    def __iter__(self):
        trainer = self.data.trainer
        own = [batch[trainer.global_rank :: trainer.world_size] for batch in self.batches]
        trainer.lightning_module.prepare_phase([group for batch in own for group in batch], len(own))
        return iter(own)


class Module(RecordingModule):
    """Away from its reference; records whole gradients and the number of packs."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.packs = [0]

    def configure_model(self):
        new = self.policy is None
        super().configure_model()
        if new:
            moved = self._reference_copy[0] if self._reference_copy else self.model
            _move([weight for weight in moved.parameters() if self._reference_copy or weight.requires_grad])

    def apply_gradients(self):
        norm = super().apply_gradients()
        self.packs.append(0)
        self.recorded[-1] = {name: _whole(gradient) for name, gradient in self.recorded[-1].items()}
        return norm

    def _pack_loss(self, *arguments):
        self.packs[-1] += 1
        return super()._pack_loss(*arguments)


def _move(weights):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trainer_of(strategy, folder, **settings):
    if strategy is None:
        return quiet_trainer(default_root_dir=folder, **settings)
    if strategy == "sharded":
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    return quiet_trainer(strategy=strategy, devices=2, default_root_dir=folder, **settings)


def hand_made_steps(strategy, policy, max_tokens, folder):
    """One optimiser step on each batch, with weights that stay: gradients and metrics."""
    module = Module(policy=policy, optimizer=STILL, anchor_probability=0.0, max_tokens_per_forward=max_tokens)
    trainer_of(strategy, folder, max_epochs=1).fit(module, Steps())
    return {
        "gradients": dict(zip(steps(), module.recorded, strict=True)),
        "metrics": dict(zip(steps(), [found for found in module.logged if "train/loss" in found], strict=True)),
        "packs": dict(zip(steps(), module.packs, strict=False)),
        "skipped": module.finite_steps.skipped,
        "steps": module.global_step,
    }


def rollouts(strategy, policy, folder, *callbacks, phases=1, resume=False, tokens=40):
    """A run with rollouts, a validation of one task and a test of three."""
    module = RecordingModule(policy=policy, optimizer=OptimizerConfig(1e-4), max_tokens_per_forward=500)
    data = RolloutDataModule(
        train=BundledTasks("train", 5, start=3),
        validation=BundledTasks("validation", 1),
        test=BundledTasks("validation", 3),
        prompts_per_phase=4,
        prompts_per_step=2,
        rollouts_per_prompt=2,
        limits=RolloutLimits(max_turns=2, max_new_tokens_per_turn=tokens, max_trajectory_tokens=240),
        max_prompt_tokens=250,
    )
    callbacks = [ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True), *callbacks]
    trainer = trainer_of(strategy, folder, max_epochs=phases, enable_checkpointing=True, callbacks=callbacks)
    trainer.fit(module, data, ckpt_path="last" if resume else None)
    weights = {name: _whole(weight).clone() for name, weight in module.model.named_parameters() if weight.requires_grad}
    with module.whole_policy() as whole:
        lent = {name: weight.clone() for name, weight in whole.named_parameters() if name in weights}
    trainer.test(module, data, verbose=False)
    return {"logged": module.logged, "history": module.history, "weights": weights, "lent": lent}


def supervised(strategy, folder):
    """Two optimiser steps on expert traces."""
    module = SFTModule(policy=LORA, optimizer=OptimizerConfig(1e-3), max_tokens_per_forward=700)
    data = TraceDataModule(train=BundledTasks("train", 8), batch_size=4)
    trainer = trainer_of(strategy, folder, max_epochs=1)
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class StopsIn(AfterStep):
    """Tells some of the processes to stop, in a step of the second phase."""

    def __init__(self, ranks):
        super().__init__(1, 0)
        self.ranks = ranks

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_rank in self.ranks:
            super().on_train_batch_end(trainer, *arguments)


def interrupted(folder, ranks):
    """Two phases: undisturbed for ``-``, resumed for ``resume``, else told to stop in the processes that are named."""
    callbacks = [] if ranks in ("-", "resume") else [StopsIn({int(rank) for rank in ranks.split(",")})]
    found = rollouts("ddp", LORA, folder, *callbacks, phases=2, resume=ranks == "resume", tokens=FEW)
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


def of_a_lora(folder):
    """The steps by hand once more."""
    found = {"replicas lora": hand_made_steps("ddp", LORA, TIGHT, folder)}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


def main(folder):
    found = {
        "replicas full": hand_made_steps("ddp", FULL, TIGHT, folder),
        "rollouts": rollouts("ddp", LORA, folder / "replicas"),
        "supervised": supervised("ddp", folder),
        "sharded": hand_made_steps("sharded", FULL, TIGHT, folder),
        "sharded, whole run": rollouts(
            "sharded", FULL, folder / "sharded-once", ExportPolicy(str(folder / "exported")), phases=2, tokens=FEW
        ),
    }
    rollouts("sharded", FULL, folder / "sharded-twice", tokens=FEW)
    found["sharded, resumed"] = rollouts("sharded", FULL, folder / "sharded-twice", phases=2, resume=True, tokens=FEW)
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


def fork(rank, folder, *arguments):
    """Starts one of the processes; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    os.environ["LOCAL_RANK"] = str(rank)
    with (folder / f"out{rank}.txt").open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    status = 1
    try:
        faulthandler.enable()  # where a crash of native code came from
        faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
        if arguments == ("lora",):
            of_a_lora(folder)
        else:
            interrupted(folder, *arguments) if arguments else main(folder)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:  # noqa: BLE001  # told in the file, and by the exit status
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    forked = [fork(rank, Path(sys.argv[1]), *sys.argv[2:]) for rank in range(2)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in forked]))

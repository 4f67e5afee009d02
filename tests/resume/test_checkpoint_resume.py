"""Resuming: two phases, a checkpoint and two more are bit for bit the four phases of an uninterrupted run."""

import csv
import io

import pytest
import torch
from hand_made import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.policy.state_dict import load_trainable_state
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.optimizer import OptimizerConfig

PHASES, STEPS = 4, 2
TIMINGS = {"rollout/seconds", "rollout/tokens_per_second", "rollout/tool_share"}


def timing(name):
    return name in TIMINGS or name.startswith(("time/", "perf/"))


class Run:
    """One fit in a folder of its own, and what it leaves."""

    def __init__(self, folder, adapter, phases, *, resume=False):
        self.folder = folder
        logger = CSVLogger(folder / f"to-{phases}", name="", version="")
        policy = PolicyConfig(
            model="bundled",
            adapter=adapter,
            lora_r=4,
            lora_alpha=8,
            lora_dropout=0.1,
            dtype="float32",
            target_modules=["q_proj", "v_proj"],
        )
        self.module = PACTModule(policy=policy, optimizer=OptimizerConfig(3e-4, schedule="cosine", schedule_steps=12))
        tasks = BundledTasks("train", 3, start=3)
        limits = RolloutLimits(max_turns=3, max_new_tokens_per_turn=48, max_trajectory_tokens=300, rows=4)
        data = RolloutDataModule(
            train=tasks,
            validation=BundledTasks("validation", 1),
            prompts_per_phase=2,
            prompts_per_step=2 // STEPS,
            rollouts_per_prompt=3,
            limits=limits,
        )
        callbacks = [AnnealingCallback(horizon=PHASES), ModelCheckpoint(dirpath=folder / "ckpt", save_last=True)]
        trainer = quiet_trainer(
            max_epochs=phases, logger=logger, enable_checkpointing=True, callbacks=callbacks, num_sanity_val_steps=-1
        )
        trainer.fit(self.module, data, ckpt_path="last" if resume else None)
        self.log = folder / f"to-{phases}"

    def checkpoint(self):
        return torch.load(self.folder / "ckpt" / "last.ckpt", weights_only=True)

    def metrics(self):
        rows = csv.DictReader(io.StringIO((self.log / "metrics.csv").read_text()))
        kept = [row for row in rows if int(row["step"]) >= 2 * STEPS]
        return [{name: value for name, value in row.items() if value and not timing(name)} for row in kept]

    def trajectories(self):
        return {path.name: path.read_text() for path in sorted((self.log / "trajectories").iterdir())}


@pytest.fixture(scope="module", params=["lora", pytest.param("full", marks=pytest.mark.slow)])
def runs(request, tmp_path_factory):
    """The uninterrupted run, and the resumed one."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "resumed")]
    whole = Run(folders[0], request.param, PHASES)
    Run(folders[1], request.param, PHASES // 2)
    return whole, Run(folders[1], request.param, PHASES, resume=True)


def test_the_runs_have_something_to_tell_apart(runs):
    whole, _ = runs
    assert {"phase-0002.jsonl", "phase-0003.jsonl", "validation-0000.jsonl", "validation-0004.jsonl"} <= set(
        whole.trajectories()
    )
    text = "".join(whole.trajectories().values())
    assert '"tool_calls"' in text
    assert len(set(text.splitlines())) > 10, "rollouts differ"
    metrics = whole.metrics()
    assert any(float(row.get("train/rl_loss", 0)) != 0 for row in metrics)
    assert len([row for row in metrics if "train/loss" in row]) == 2 * STEPS


def test_weights_optimiser_and_counters_are_bit_for_bit_the_same(runs):
    whole, resumed = (run.checkpoint() for run in runs)
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "validation_history"):
        torch.testing.assert_close(whole[part], resumed[part], rtol=0, atol=0)
    assert (whole["epoch"], whole["global_step"]) == (resumed["epoch"], resumed["global_step"]) == (3, PHASES * STEPS)


def test_metrics_of_the_later_phases_are_the_same_to_the_last_digit(runs):
    whole, resumed = (run.metrics() for run in runs)
    assert whole == resumed
    names = {name for row in whole for name in row}
    assert {"rollout/reward", "val/answer_correct", "anneal/level", "train/kl", "anchor/drawn"} <= names


def test_rollouts_of_the_later_phases_are_the_same_byte_for_byte(runs):
    whole, resumed = (run.trajectories() for run in runs)
    later = {"phase-0002.jsonl", "phase-0003.jsonl", "validation-0003.jsonl", "validation-0004.jsonl"}
    assert set(resumed) == later, "a resumed run repeats nothing, its start included"
    assert resumed == {name: whole[name] for name in later}


def test_a_checkpoint_holds_the_trained_weights_and_primitives_only(runs):
    whole, _ = runs
    checkpoint = whole.checkpoint()
    trained = {name for name, weight in whole.module.model.named_parameters() if weight.requires_grad}
    assert set(checkpoint["state_dict"]) == trained
    if whole.module.policy_config.adapter == "lora":
        assert all("lora_" in name for name in trained)

    def leaves(value):
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str | int)
                yield from leaves(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from leaves(item)
        else:
            yield value

    rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    kinds = {type(leaf) for leaf in leaves(rest)}
    assert kinds <= {str, int, float, bool, type(None), torch.Tensor}
    tensors = [leaf for leaf in leaves(checkpoint["optimizer_states"]) if isinstance(leaf, torch.Tensor)]
    shapes = {tuple(weight.shape) for weight in checkpoint["state_dict"].values()}
    assert {tuple(tensor.shape) for tensor in tensors} <= shapes | {()}


def test_the_resumed_run_still_knows_its_start(runs):
    whole, resumed = runs
    assert [phase for phase, _ in resumed.module.history] == [0, 1, 2, 3, 4]
    assert resumed.module.history == whole.module.history


def test_a_checkpoint_of_another_adapter_is_refused(runs):
    whole, _ = runs
    other = "full" if whole.module.policy_config.adapter == "lora" else "lora"
    model = load_policy(PolicyConfig(model="bundled", adapter=other, dtype="float32"))
    with pytest.raises(ValueError, match="the saved weights do not fit the policy"):
        load_trainable_state(model, whole.checkpoint()["state_dict"])

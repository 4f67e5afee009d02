"""Whole fits whose tools misbehave: no phase is lost."""

import tempfile
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
from hand_made import LORA

from faults.deadline import HangError, within
from faults.result import FaultResult
from faults.world import MisbehavingWorld
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.prompt import EnvironmentSpec

SECTION = "Phases"
PHASES, PROMPTS, SAMPLES = 3, 4, 4


class FailingTasks:
    """Bundled tasks in the misbehaving world."""

    def __init__(self, share):
        self.share = share

    def load(self):
        return [self._moved(task) for task in BundledTasks("train", 2 * PROMPTS).load()]

    def _moved(self, task):
        arguments = dict(task.prompt.environment.init_args) | {"share": self.share, "timeout_s": 1.0}
        spec = EnvironmentSpec("faults.world.MisbehavingWorld", arguments)
        return replace(task, prompt=replace(task.prompt, environment=spec))


def run(times):
    """Fits of three phases with a tenth, half and all of their calls misbehaving; ``times`` is not used."""
    del times
    return [_row(share) for share in (0.1, 0.5, 1.0)]


def _row(share):
    name = f"{share:.0%} of a fit's calls misbehave"
    before = MisbehavingWorld.injected
    with tempfile.TemporaryDirectory() as folder:
        try:
            steps = within(1800, _fit, Path(folder), share)
        except HangError as error:
            return FaultResult(SECTION, name, PHASES, 0, f"HANG: {error}")
        files = sorted((Path(folder) / "trajectories").glob("phase-*.jsonl"))
        complete = [len(path.read_text().splitlines()) == PROMPTS * SAMPLES for path in files]
    held = sum(complete) if steps == PHASES * PROMPTS // 2 else 0
    injected = MisbehavingWorld.injected - before
    return FaultResult(
        SECTION,
        name,
        PHASES,
        held,
        f"{len(files)} phases of {PROMPTS * SAMPLES} rollouts, {steps} steps; {injected} faults",
    )


def _fit(folder, share):
    module = PACTModule(policy=LORA)
    data = RolloutDataModule(
        train=FailingTasks(share),
        prompts_per_phase=PROMPTS,
        prompts_per_step=2,
        rollouts_per_prompt=SAMPLES,
        limits=RolloutLimits(max_turns=4, max_new_tokens_per_turn=96, max_trajectory_tokens=1500),
        max_prompt_tokens=800,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=PHASES,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    return trainer.global_step

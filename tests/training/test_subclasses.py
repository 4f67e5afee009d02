"""Modules and data modules of a user's own, derived from ours: a recipe names them, they plan, train and go on."""

import csv

import pytest
from cli_recipe import saved

from pact_lightning import PACTModule, RolloutDataModule
from pact_lightning.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SEEN = []


class MyModule(PACTModule):
    """One more argument, one that the user has fixed, and a training step that is told of."""

    def __init__(self, *, favourite: str = "none", **arguments):
        super().__init__(anchor_probability=0.0, **arguments)
        self.favourite = favourite

    def training_step(self, batch, batch_idx):
        SEEN.append((self.favourite, self.trainer.current_epoch, batch_idx))
        return super().training_step(batch, batch_idx)


class MyData(RolloutDataModule):
    """The data module, under a name of the user's own."""


def changes(phases):
    return {
        "model.class_path": f"{__name__}.MyModule",
        "model.init_args": {
            "favourite": "tea",
            "policy": {"adapter": "lora", "lora_r": 4, "dtype": "float32"},
            "max_tokens_per_forward": 4096,
        },
        "data.class_path": f"{__name__}.MyData",
        "trainer.max_epochs": phases,
        "trainer.num_sanity_val_steps": 0,
    }


def losses(folder):
    rows = csv.DictReader((folder / "run" / "metrics.csv").open())
    return [row["train/loss"] for row in rows if row.get("train/loss")]


def test_subclasses_train_and_a_run_that_is_gone_on_with_repeats_the_whole_one(tmp_path):
    SEEN.clear()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    main(["fit", "-c", saved(whole, changes(2))])
    assert [("tea", phase, step) for phase in range(2) for step in range(2)] == SEEN
    main(["fit", "-c", saved(parts, changes(1))])
    main(["fit", "-c", saved(parts, changes(2)), "--ckpt_path", "last"])
    assert losses(parts) == losses(whole)


def test_subclasses_plan(tmp_path, capsys):
    main(["plan", "-c", saved(tmp_path, changes(2)), "--tflops", "1", "--bandwidth", "10"])
    assert "2 prompts x 2 rollouts" in capsys.readouterr().out

"""Folders of runs: no run goes on from another recipe's checkpoint, none writes over another one's files."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_recipe import recipe
from jsonargparse import dict_to_namespace
from lightning.pytorch.loggers import Logger
from shallow_policy import shallow_folder

from pact_lightning.cli.main import main
from pact_lightning.cli.plan_recipe import parsed_recipe
from pact_lightning.cli.run_name import put_into_run_folder

OVERLAYS = Path(__file__).resolve().parent.parent.parent / "recipes" / "overlays"
GRPO = str(OVERLAYS / "grpo.yaml")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, caplog):
    """Types a command in an empty folder; gives its status and what it printed."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="lightning.pytorch")

    def typed(*arguments):
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        told = caplog.text + printed.out + printed.err
        caplog.clear()
        return status, told

    return typed


def written(name="my.yaml", explicit=False, **changes):
    """A recipe of one short phase in the present folder; ``explicit`` names its folders as older recipes do."""
    config = recipe(Path())
    config["model"]["init_args"]["policy"]["model"] = shallow_folder()
    config["trainer"] |= {"num_sanity_val_steps": 0, "limit_val_batches": 0} | changes
    logger = {"save_dir": "out", "name": ""} if explicit else {"save_dir": "runs"}
    config["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    folder = {"dirpath": "out/checkpoints"} if explicit else {}
    config["trainer"]["callbacks"][1]["init_args"] = {"save_last": True, "save_on_train_epoch_end": True} | folder
    Path(name).write_text(yaml.safe_dump(config))
    return name


def made_by(path):
    return torch.load(path, weights_only=True)["made_by"]


def rates(path):
    with Path(path).open() as file:
        return [float(row["train/learning_rate"]) for row in csv.DictReader(file) if row["train/learning_rate"]]


@pytest.mark.parametrize(
    ("explicit", "pact", "grpo"),
    [
        (False, "runs/my/version_0/checkpoints", "runs/my-grpo/version_0/checkpoints"),
        pytest.param(True, "out/checkpoints", "out-grpo/checkpoints", marks=pytest.mark.slow),
    ],
)
def test_pact_then_grpo_then_pact_again(run, explicit, pact, grpo):
    my = written(explicit=explicit)
    assert run("fit", "-c", my)[0] == 0
    assert run("fit", "-c", my, "-c", GRPO)[0] == 0
    log = "out/version_0" if explicit else "runs/my/version_0"
    left = {name: Path(log, name).read_bytes() for name in ("config.yaml", "metrics.csv")}
    status, told = run("fit", "-c", my, "--ckpt_path", "last")
    assert status == 0
    assert "nothing is left to train: the checkpoint has finished 1 phases in 2 optimiser steps" in told
    assert "--trainer.max_epochs 2" in told
    assert {name: Path(log, name).read_bytes() for name in left} == left
    status, told = run("fit", "-c", my, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert (status, len(rates(f"{log}/metrics.csv"))) == (0, 4)
    assert "trainer.max_epochs" in told
    rewards = {
        folder: made_by(f"{folder}/last.ckpt")["recipe"]["data"]["init_args"]["credit"]["reward"]
        for folder in (pact, grpo)
    }
    assert rewards == {pact: "matchtir", grpo: "outcome"}
    assert sorted(Path().rglob("last*.ckpt")) == sorted([Path(pact, "last.ckpt"), Path(grpo, "last.ckpt")])
    status, told = run("fit", "-c", my, "-c", GRPO, "--ckpt_path", f"{pact}/last.ckpt", "--trainer.max_epochs", 3)
    assert status == 2
    assert "model.anchor_probability (0.0 -> 1.0), data.credit.reward (matchtir -> outcome)" in told


def test_a_name_gives_a_folder_and_a_second_run_of_a_recipe_has_one_of_its_own(run):
    my = written()
    assert run("fit", "-c", my, "--name", "first")[0] == 0
    assert run("fit", "-c", my, "--name", "first", "--model.init_args.seed", 5)[0] == 0
    assert sorted(path.as_posix() for path in Path().rglob("last*.ckpt")) == [
        f"runs/first/version_{number}/checkpoints/last.ckpt" for number in (0, 1)
    ]
    assert run("validate", "-c", my, "--name", "first", "--trainer.limit_val_batches", 1, "--ckpt_path", "last")[0] == 0
    results = json.loads(Path("runs/first/version_2/results-validation.json").read_text())
    assert results["model"] == shallow_folder()
    assert results["checkpoint"].endswith("runs/first/version_1/checkpoints/last.ckpt"), "the newest"
    line = Path("runs/first/version_2/trajectories/validation.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["checkpoint"] == results["checkpoint"]


def placed(tmp_path, overlay, *options):
    """Where a run of a recipe with an overlay that names folders would keep its files."""
    my = written()
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": overlay}))
    config = parsed_recipe(["-c", my, "-c", "mine.yaml", *options])
    found = dict_to_namespace(config)
    put_into_run_folder(found, ["-c", my, "-c", "mine.yaml", *options])
    logger = found.trainer.logger.init_args
    return Path(logger.save_dir, logger.name).as_posix(), found.trainer.default_root_dir


@pytest.mark.parametrize(
    ("overlay", "options", "folder"),
    [
        ({"logger.init_args.save_dir": "out"}, ["--name", "first"], "out/first"),
        ({"logger.init_args": {"save_dir": "out", "name": "mine"}}, ["--name", "first"], "out/first"),
        ({"logger.init_args": {"save_dir": "out/mine", "name": ""}}, ["--name", "first"], "out/first"),
        ({"logger.init_args": {"save_dir": "out", "name": "mine"}}, [], "out/mine"),
        (
            {"logger.init_args": {"save_dir": "out/mine", "name": ""}},
            ["--trainer.logger.init_args.save_dir", "other", "--name", "first"],
            "other",
        ),
    ],
)
def test_a_name_is_heeded_where_an_overlay_names_a_folder(tmp_path, monkeypatch, overlay, options, folder):
    monkeypatch.chdir(tmp_path)
    assert placed(tmp_path, overlay, *options)[0] == folder


def test_a_recipe_with_another_logger_alone_gets_its_folder_and_metrics_csv_too(run):
    config = yaml.safe_load(Path(written()).read_text())
    config["trainer"]["logger"] = {"class_path": f"{__name__}.Elsewhere", "init_args": {"place": "cloud"}}
    Path("my.yaml").write_text(yaml.safe_dump(config))
    assert run("fit", "-c", "my.yaml")[0] == 0
    folder = Path("runs/my/version_0")
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml", "metrics.csv", "trajectories"}
    assert len(rates(folder / "metrics.csv")) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["cloud.txt", "my.yaml", "runs"]


class Elsewhere(Logger):
    """A logger that keeps no folder, as that of Weights & Biases."""

    name, version = "elsewhere", "1"

    def __init__(self, place: str):
        super().__init__()
        self.place = Path(f"{place}.txt")

    def log_metrics(self, metrics, step=None):
        with self.place.open("a") as file:
            file.write(f"{step} {sorted(metrics)}\n")

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_a_refused_run_leaves_no_folder(run):
    my = written()
    for verb, changed in (("fit", "train"), ("validate", "validation")):
        status, told = run(verb, "-c", my, f"--data.init_args.{changed}", "null")
        assert status == 2, told
    assert run("fit", "-c", my, "-c", str(OVERLAYS / "tensorboard.yaml"), "--data.init_args.train", "null")[0] == 2
    assert [path.name for path in Path("runs").glob("*")] == []


def test_a_refused_run_leaves_what_is_there(run):
    my = written(explicit=True)
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    assert run("fit", "-c", my, "--data.init_args.train", "null")[0] == 2
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_run_that_begins_anew_in_the_folder_of_another_puts_that_one_aside(run):
    my = written(explicit=True)
    assert run("fit", "-c", my)[0] == 0
    first = Path("out/checkpoints/last.ckpt").read_bytes()
    assert run("fit", "-c", my, "--model.init_args.seed", 5)[0] == 0
    assert Path("out/checkpoints/earlier-1/last.ckpt").read_bytes() == first
    assert [path.name for path in Path("out/checkpoints").glob("last*.ckpt")] == ["last.ckpt"]
    assert made_by("out/checkpoints/last.ckpt")["recipe"]["model"]["init_args"]["seed"] == 5


def test_a_copied_folder_is_gone_on_with_in_its_last_ckpt(run):
    my = written()
    assert run("fit", "-c", my)[0] == 0
    shutil.copytree("runs/my", "runs/copy")
    status, _ = run("fit", "-c", my, "--name", "copy", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    folder = Path("runs/copy/version_0/checkpoints")
    assert status == 0
    assert [path.name for path in folder.glob("last*.ckpt")] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    assert [path.name for path in Path("runs/copy").iterdir() if path.is_dir()] == ["version_0"]


def test_a_new_learning_rate_is_taken_over_and_told(run):
    my = written()
    assert run("fit", "-c", my)[0] == 0
    rate = ("--model.init_args.optimizer.learning_rate", "1e-5")
    status, told = run("fit", "-c", my, "--ckpt_path", "last", "--trainer.max_epochs", 2, *rate)
    assert status == 0
    assert "model.optimizer.learning_rate" in told
    assert rates("runs/my/version_0/metrics.csv") == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5])


def test_what_would_train_something_else_is_refused_unless_it_is_asked_for(run):
    my = written()
    assert run("fit", "-c", my)[0] == 0
    more = ("--ckpt_path", "last", "--trainer.max_epochs", 2, "--model.init_args.policy.lora_alpha", 64)
    status, told = run("fit", "-c", my, *more)
    assert status == 2
    assert "model.policy.lora_alpha (32 -> 64)" in told.splitlines()[-1]
    assert "--allow_recipe_change" in told.splitlines()[-1]
    status, _ = run("fit", "-c", my, *more, "--allow_recipe_change", "true")
    assert (status, len(rates("runs/my/version_0/metrics.csv"))) == (0, 4)


def test_an_old_checkpoint_that_names_no_recipe_is_told_and_taken(run):
    my = written()
    assert run("fit", "-c", my)[0] == 0
    path = Path("runs/my/version_0/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    del content["made_by"]
    torch.save(content, path)
    status, told = run("fit", "-c", my, "--ckpt_path", path, "--trainer.max_epochs", 2)
    assert status == 0
    assert "does not say which recipe made it" in told

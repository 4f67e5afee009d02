"""The command line: what a run leaves behind."""

import csv
import io
import json
import re
import shutil

import pytest
import torch
import yaml
from bitsandbytes.nn import Linear4bit
from cli_recipe import bundled, recipe, records, saved

import pact_lightning.training.policy_module
from pact_lightning.cli.fit import PactCLI, _at_work
from pact_lightning.cli.main import main
from pact_lightning.metrics.evaluation import RolloutMetric
from pact_lightning.report.content import Reader


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a fit."""
    folder = tmp_path_factory.mktemp("fit")
    main(["fit", "-c", saved(folder)])
    return folder


def test_fit_leaves_config_metrics_events_trajectories_and_checkpoint(fitted):
    run = fitted / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["policy"]["lora_r"] == 4
    assert config["data"]["init_args"]["temperature"] == 1.0, "defaults are written out"
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    logged = {name for row in rows for name, value in row.items() if value}
    wanted = {"train/loss", "train/sft_loss", "rollout/reward", "val/answer_correct", "anneal/level", "anchor/drawn"}
    assert wanted <= logged
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert [row["step"] for row in rows if row["val/answer_correct"]] == ["0", "1"], "its start, and its end"
    assert any(path.name.startswith("events.out.tfevents") for path in run.iterdir())
    assert {path.name for path in (run / "trajectories").iterdir()} == {
        "phase-0000.jsonl",
        "validation-0000.jsonl",
        "validation-0001.jsonl",
    }
    phase = records(run / "trajectories" / "phase-0000.jsonl")
    assert len(phase) == 2 * 2
    for record in phase:
        assert [message["role"] for message in record["messages"][:3]] == ["system", "user", "assistant"]
        turns = sum(message["role"] == "assistant" for message in record["messages"])
        assert len(record["turn_rewards"]) == len(record["turn_advantages"]) == turns
        assert record["solved"] is False, "twelve tokens a turn are too few"
        assert record["stop_reason"] in {"answered", "max_turns", "max_tokens_turn", "max_tokens_trajectory"}
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])


def test_a_report_shows_all_that_a_fit_has_left(fitted):
    content = Reader([str(fitted / "run")]).read()
    (facts,) = content.index["runs"]
    assert facts["notes"] == []
    assert (facts["shown"], facts["count"], facts["steps"]) == (8, 8, 2)
    assert set(facts["traced"]) == {row["task"] for row in content.index["rollouts"]}
    assert {"loss", "reward", "level", "stops", "seconds"} <= {chart["key"] for chart in content.index["charts"]}
    (success,) = [chart for chart in content.index["charts"] if chart["key"].startswith("success")]
    assert [point[0] for point in success["series"][0]["points"]] == [0, 2]


@pytest.mark.parametrize(("verb", "prefix"), [("validate", "val"), ("test", "test")])
def test_validate_and_test_score_a_checkpoint(fitted, tmp_path, verb, prefix):
    main([verb, "-c", saved(tmp_path), "--ckpt_path", str(fitted / "run" / "checkpoints" / "last.ckpt")])
    scores = next(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert 0.0 <= float(scores[f"{prefix}/answer_correct"]) <= 1.0
    (file,) = (tmp_path / "run" / "trajectories").iterdir()
    assert file.name == {"validate": "validation.jsonl", "test": "test.jsonl"}[verb]
    assert len(records(file)) == 2
    stage = {"validate": "validation", "test": "test"}[verb]
    results = json.loads((tmp_path / "run" / f"results-{stage}.json").read_text())
    facts = {"stage": stage, "tasks": 2, "left_out": 0, "rollouts": "greedy, prompt only"}
    assert {name: results[name] for name in facts} == facts
    assert results["scores"]["answer_correct"] == pytest.approx(float(scores[f"{prefix}/answer_correct"]))


def test_chat_speaks_by_the_newest_checkpoint_of_a_run(fitted, monkeypatch, capsys):
    kept = sorted(fitted.rglob("*"))
    loaded = []
    load = pact_lightning.training.policy_module.PolicyModule.load_state_dict
    monkeypatch.setattr(
        pact_lightning.training.policy_module.PolicyModule,
        "load_state_dict",
        lambda module, state, **how: loaded.append(state) or load(module, state, **how),
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    main(["chat", str(fitted / "run")])
    assert "you> Hello" in capsys.readouterr().out
    checkpoint = torch.load(fitted / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert [sorted(state) for state in loaded] == [sorted(checkpoint["state_dict"])]
    assert sorted(fitted.rglob("*")) == kept
    with pytest.raises(SystemExit):
        main(["chat", str(fitted)])
    assert f"did you mean {fitted / 'run'}?" in capsys.readouterr().err


class WordCount(RolloutMetric):
    """A metric of a user's own: how long the questions are, and whether they are questions."""

    shares = ("asked",)

    def __init__(self):
        super().__init__()
        self.add_state("words", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("asked", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, trajectory, task):
        question = task.prompt.messages[-1]["content"]
        self.words += len(question.split())
        self.asked += question.endswith(("?", "."))
        self.count += 1

    def compute(self):
        return {"words": self.words / self.count, "asked": self.asked / self.count}


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_an_evaluation_in_the_folder_of_a_fit_leaves_what_the_fit_left(fitted, tmp_path, verb):
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    kept = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    earlier = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    main(
        [
            verb,
            "-c",
            saved(tmp_path, {"data.init_args.evaluation": {"samples": 2, "temperature": 1.0}}),
            "--ckpt_path",
            "last",
        ]
    )
    changed = {str(path) for path, content in kept.items() if (tmp_path / path).read_bytes() != content}
    assert changed <= {"recipe.yaml", "run/metrics.csv"}
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert rows[: len(earlier)] == earlier
    assert len(rows) - len(earlier) == (verb == "validate")
    assert (tmp_path / "run" / f"config-{verb}.yaml").is_file()


def test_validation_by_samples_and_with_a_metric_of_one_s_own(tmp_path, capsys):
    changes = {
        "data.init_args.evaluation": {"temperature": 1.0, "samples": 3},
        "data.init_args.max_prompt_tokens": 150,
        "data.init_args.validation": bundled("validation", 8),
        "model.init_args.metrics": [{"class_path": f"{__name__}.WordCount"}],
    }
    main(["validate", "-c", saved(tmp_path, changes)])
    results = json.loads((tmp_path / "run" / "results-validation.json").read_text())
    assert results["rollouts"] == "temperature 1, 3 each, prompt only"
    assert results["tasks"] + results["left_out"] == 8
    assert 0 < results["left_out"] < 8
    rollouts = records(tmp_path / "run" / "trajectories" / "validation.jsonl")
    assert len(rollouts) == 3 * results["tasks"]
    assert len({json.dumps(rollout["messages"]) for rollout in rollouts}) > results["tasks"], "samples differ"
    questions = [rollout["messages"][1]["content"] for rollout in rollouts]
    assert results["scores"]["words"] == pytest.approx(sum(len(q.split()) for q in questions) / len(questions))
    table = capsys.readouterr().out
    assert "100.0 %" in next(line for line in table.splitlines() if "asked" in line)
    assert f"{results['left_out']} left out" in " ".join(table.split())
    assert "Validate metric" not in table, "the scores are shown once"


class Listing(WordCount):
    """A metric that gives a list where a number should be."""

    def compute(self):
        return {"words": [1, 2]}


def test_a_metric_that_gives_no_numbers_is_named(tmp_path):
    changes = {"model.init_args.metrics": [{"class_path": f"{__name__}.Listing"}]}
    with pytest.raises(ValueError, match=r"Listing\.compute\(\) must return a dictionary of numbers, not"):
        main(["validate", "-c", saved(tmp_path, changes)])


def test_two_metrics_of_one_name_are_refused(tmp_path):
    twice = [{"class_path": f"{__name__}.WordCount"}] * 2
    with pytest.raises(ValueError, match="two metrics give asked, words"):
        main(["validate", "-c", saved(tmp_path, {"model.init_args.metrics": twice})])


@pytest.mark.parametrize("evaluation", [{"temperature": -1.0}, {"samples": 0}, {"samples": 3}])
def test_an_evaluation_that_makes_no_sense_is_refused(tmp_path, capsys, evaluation):
    with pytest.raises(SystemExit):
        main(["validate", "-c", saved(tmp_path, {"data.init_args.evaluation": evaluation})])
    assert "data.evaluation" in capsys.readouterr().err


def test_predict_writes_trajectories(tmp_path):
    main(["predict", "-c", saved(tmp_path)])
    (record,) = records(tmp_path / "run" / "trajectories" / "predict.jsonl")
    assert record["task_id"] == "longer-0"


def test_fit_can_go_on_from_its_last_checkpoint(fitted):
    changes = {"trainer.max_epochs": 2}
    for logger in (config := recipe(fitted))["trainer"]["logger"]:
        logger["init_args"]["version"] = "more"
    main(["fit", "-c", saved(fitted, changes | {"trainer.logger": config["trainer"]["logger"]}), "--ckpt_path", "last"])
    assert {path.name for path in (fitted / "more" / "trajectories").iterdir()} == {
        "phase-0001.jsonl",
        "validation-0002.jsonl",
    }


def test_an_evaluation_of_last_takes_the_newest_whole_checkpoint(fitted, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(fitted / "run" / "checkpoints", folder)
    damaged, *others = sorted(folder.iterdir(), key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime))[::-1]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.warns(UserWarning, match=r"last\.ckpt is .*; the previous one is used$"):
        main(["validate", "-c", saved(tmp_path), "--ckpt_path", "last"])
    assert PactCLI.latest.trainer.ckpt_path == str(others[0])
    assert damaged.exists()


def test_last_says_what_it_does_and_goes_on_in_the_folder_of_the_interrupted_run(tmp_path, caplog):
    caplog.set_level("INFO", logger="lightning.pytorch")
    changes = {"trainer.logger": recipe(tmp_path)["trainer"]["logger"]}
    for logger in changes["trainer.logger"]:
        logger["init_args"]["version"] = None
    main(["fit", "-c", saved(tmp_path, changes), "--ckpt_path", "last"])
    folder = tmp_path / "run" / "checkpoints"
    assert f"started from the beginning: there is no checkpoint in {folder}" in caplog.text
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="last.ckpt is truncated or not a checkpoint.*; the previous one is used"):
        main(["fit", "-c", saved(tmp_path, changes | {"trainer.max_epochs": 2}), "--ckpt_path", "last"])
    assert re.search(rf"resumed from {folder}/epoch=0-step=2\.ckpt at phase 1\b", caplog.text)
    assert [path.name for path in tmp_path.glob("version_*")] == ["version_0"]
    rows = list(csv.DictReader((tmp_path / "version_0" / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows if row["val/answer_correct"]] == ["0", "1", "3"]
    assert [row["epoch"] for row in rows if row["rollout/reward"]] == ["0", "1"]
    assert {path.name for path in (tmp_path / "version_0" / "trajectories").iterdir()} == {
        "phase-0000.jsonl",
        "phase-0001.jsonl",
        "validation-0000.jsonl",
        "validation-0001.jsonl",
        "validation-0002.jsonl",
    }


def test_print_config_prints_a_config_that_can_be_given_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", saved(tmp_path), "--print_config"])
    assert stopped.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["coefficients"] == {"sft": 0.1, "kl": 0.001, "entropy": 0.001}
    assert printed["data"]["init_args"]["prompts_per_phase"] == 2


def test_one_command_is_set_up_and_all_where_an_option_stands_before_it(tmp_path, capsys):
    """The parsers of the others take time; but the first word may be any option with any value."""
    printed = {}
    for arguments in (["validate"], ["--print_config", "validate"]):
        with pytest.raises(SystemExit):
            main([*arguments, "-c", saved(tmp_path), "--print_config"])
        printed[arguments[0]] = capsys.readouterr().out
        assert len(PactCLI.latest.subcommands()) == (1 if arguments[0] == "validate" else 4)
    assert yaml.safe_load(printed["validate"])["data"]["init_args"]["prompts_per_phase"] == 2
    assert printed["validate"] in printed["--print_config"]


def test_a_later_config_overlays_an_earlier_one(tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    anchor_probability: 0.25\ntrainer:\n  max_epochs: 7\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", saved(tmp_path), "-c", str(overlay), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["anchor_probability"] == 0.25
    assert printed["model"]["init_args"]["policy"]["lora_r"] == 4
    assert printed["trainer"]["max_epochs"] == 7


def test_qlora_trains_the_adapter_on_a_4_bit_base(tmp_path, monkeypatch):
    seen = {}
    step = pact_lightning.PolicyModule.apply_gradients

    def watched(self):
        seen["with gradient"] = {name for name, weight in self.model.named_parameters() if weight.grad is not None}
        seen["4-bit"] = sum(isinstance(module, Linear4bit) for module in self.model.modules())
        norm = step(self)
        seen.setdefault("norms", []).append(norm)
        return norm

    monkeypatch.setattr(pact_lightning.PolicyModule, "apply_gradients", watched)
    main(["fit", "-c", saved(tmp_path, {"model.init_args.policy.adapter": "qlora"})])
    assert seen["4-bit"] == 4 * 7
    assert seen["with gradient"]
    assert all("lora_" in name for name in seen["with gradient"])
    assert min(seen["norms"]) > 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == seen["with gradient"]


def test_an_error_at_work_is_not_passed_off_as_a_mistake_in_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(pact_lightning.PolicyModule, "apply_gradients", _raises_value_error)
    with pytest.raises(ValueError, match="deep inside"):
        main(["fit", "-c", saved(tmp_path)])
    assert _at_work()


def _raises_value_error(self):
    raise ValueError("deep inside")

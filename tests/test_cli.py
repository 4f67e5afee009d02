"""The command line: what a run leaves behind, and the one sentence that every mistake ends in."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import yaml
from bitsandbytes.nn import Linear4bit

import pact_lightning.policy_module
from pact_lightning.cli import main
from pact_lightning.environments.bundled.tasks import make_task
from pact_lightning.lightning_cli import PactCLI
from pact_lightning.metrics.rollout_metric import RolloutMetric
from pact_lightning.tasks.jsonl import write_jsonl
from pact_lightning.tasks.record import task_to_json
from pact_lightning.tasks.schema import Task

BUNDLED = "pact_lightning.environments.bundled.tasks.BundledTasks"


def bundled(split, count):
    return {"class_path": BUNDLED, "init_args": {"split": split, "count": count}}


def recipe(folder):
    """A quickstart of one phase."""
    loggers = [
        {
            "class_path": f"lightning.pytorch.loggers.{name}",
            "init_args": {"save_dir": str(folder), "name": "", "version": "run"},
        }
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    return {
        "seed_everything": 0,
        "model": {
            "class_path": "pact_lightning.module.PACTModule",
            "init_args": {
                "policy": {"adapter": "lora", "lora_r": 4, "dtype": "float32"},
                "optimizer": {"learning_rate": 1.0e-3},
                "anchor_probability": 0.0,
                "max_tokens_per_forward": 4096,
            },
        },
        "data": {
            "class_path": "pact_lightning.datamodule.RolloutDataModule",
            "init_args": {
                "train": bundled("train", 4),
                "validation": bundled("validation", 2),
                "test": bundled("test", 2),
                "predict": bundled("longer", 1),
                "prompts_per_phase": 2,
                "prompts_per_step": 1,
                "rollouts_per_prompt": 2,
                "max_prompt_tokens": 600,
                "limits": {"max_turns": 2, "max_new_tokens_per_turn": 12, "max_trajectory_tokens": 200, "rows": 4},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "num_sanity_val_steps": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": loggers,
            "callbacks": [
                {"class_path": "pact_lightning.annealing.AnnealingCallback"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder / "run" / "checkpoints"), "save_last": True},
                },
            ],
        },
    }


def saved(folder, changes=None):
    """The recipe as a file, with ``changes`` put in by their dotted paths."""
    config = recipe(folder)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = config
        for name in parents:
            place = place[name]
        place[last] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


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
        assert record["stop_reason"] in {"answered", "max_turns", "max_tokens_turn", "max_tokens_trajectory"}
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])


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


def test_print_config_prints_a_config_that_can_be_given_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", saved(tmp_path), "--print_config"])
    assert stopped.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["coefficients"] == {"sft": 0.1, "kl": 0.001, "entropy": 0.001}
    assert printed["data"]["init_args"]["prompts_per_phase"] == 2


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
    step = pact_lightning.policy_module.PolicyModule.apply_gradients

    def watched(self):
        seen["with gradient"] = {name for name, weight in self.model.named_parameters() if weight.grad is not None}
        seen["4-bit"] = sum(isinstance(module, Linear4bit) for module in self.model.modules())
        norm = step(self)
        seen.setdefault("norms", []).append(norm)
        return norm

    monkeypatch.setattr(pact_lightning.policy_module.PolicyModule, "apply_gradients", watched)
    main(["fit", "-c", saved(tmp_path, {"model.init_args.policy.adapter": "qlora"})])
    assert seen["4-bit"] == 4 * 7
    assert seen["with gradient"]
    assert all("lora_" in name for name in seen["with gradient"])
    assert min(seen["norms"]) > 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == seen["with gradient"]


@pytest.fixture
def refusal(tmp_path, capsys, monkeypatch):
    """Runs a fit that must fail before the policy is loaded; gives the sentence."""

    def never(config):
        raise AssertionError("the policy was loaded")

    def run(changes, *arguments, verb="fit"):
        monkeypatch.setattr(pact_lightning.policy_module, "load_policy", never)
        with pytest.raises(SystemExit) as stopped:
            main([verb, "-c", saved(tmp_path, changes), *arguments])
        assert stopped.value.code == 2
        last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def jsonl(path):
    return {
        "data.init_args.train": {"class_path": "pact_lightning.tasks.jsonl.JsonlTasks", "init_args": {"path": path}}
    }


def lines(path, *extra):
    """A task file of one good line and ``extra`` ones."""
    write_jsonl(path, [make_task("train", 1)])
    with path.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in extra)
    return jsonl(str(path))


def test_a_missing_task_file_is_named(tmp_path, refusal):
    path = str(tmp_path / "nowhere.jsonl")
    assert refusal(jsonl(path)).startswith(f"error: there is no file {path}")


def test_a_missing_recipe_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "nowhere.yaml"])
    assert stopped.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err.splitlines()[-1]


def test_a_malformed_line_is_named_by_file_and_line(tmp_path, refusal):
    path = tmp_path / "tasks.jsonl"
    assert refusal(lines(path, "{oh no\n")).startswith(f"error: {path}, line 2: is not valid JSON")


def test_a_tool_without_a_schema_is_named_by_file_line_and_field(tmp_path, refusal):
    record = task_to_json(make_task("train", 2))
    name = record["tools"][1]["function"]["name"]
    record["tools"][1] = {"type": "function", "function": {"name": name}}
    path = tmp_path / "tasks.jsonl"
    sentence = refusal(lines(path, record))
    assert sentence.startswith(
        f"error: {path}, line 2: field `tools[1].function.parameters`: tool {name!r} needs a JSON"
    )


def test_a_trace_that_calls_an_unknown_tool_is_named(tmp_path, refusal):
    record = task_to_json(make_task("train", 2))
    record["trace"]["turns"][0]["calls"][0]["name"] = "guess"
    path = tmp_path / "tasks.jsonl"
    sentence = refusal(lines(path, record))
    assert sentence == f"error: {path}, line 2: field `trace.turns`: names the tool 'guess', which is not in `tools`"


def test_two_tasks_of_one_id_are_refused(tmp_path, refusal):
    path = tmp_path / "tasks.jsonl"
    assert "line 2: field `id`: 'train-1' is already the id of line 1" in refusal(
        lines(path, task_to_json(make_task("train", 1)))
    )


def test_an_environment_that_cannot_be_made_is_named(tmp_path, refusal):
    record = task_to_json(make_task("train", 2))
    record["environment"]["class_path"] = "nowhere.Shop"
    sentence = refusal(lines(tmp_path / "tasks.jsonl", record))
    assert sentence.startswith("error: the environment class 'nowhere.Shop' cannot be imported")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer.gradient_clip_val": 1.0}, "set model.optimizer.gradient_clip"),
        ({"trainer.precision": "bf16-mixed"}, "trainer.precision cannot be honoured under manual optimisation"),
        ({"trainer.accumulate_grad_batches": 4}, "set data.prompts_per_step"),
        (
            {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.BatchSizeFinder"}]},
            "BatchSizeFinder has no meaning for rollouts; set model.max_tokens_per_forward instead",
        ),
        (
            {
                "trainer.callbacks": [
                    {
                        "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
                        "init_args": {"scheduling": {0: 2}},
                    }
                ]
            },
            "set data.prompts_per_step to the batch you want",
        ),
        (
            {
                "trainer.plugins": [
                    {
                        "class_path": "lightning.pytorch.plugins.precision.BitsandbytesPrecision",
                        "init_args": {"mode": "nf4"},
                    }
                ]
            },
            "use model.policy.adapter 'qlora' instead",
        ),
        ({"data.init_args.train": None}, "there are no training tasks; set data.train"),
        ({"data.init_args.max_prompt_tokens": 10}, "no train task is left"),
        ({"data.init_args.prompts_per_step": 3}, "must be a multiple of data.prompts_per_step"),
        ({"model.init_args.max_tokens_per_forward": 700}, "raise that or lower data.max_prompt_tokens"),
        ({"model.init_args.anchor_probability": 2.0}, "anchor_probability is a probability, not 2.0"),
        ({"model.init_args.level": 9}, "level must be a level from 0 to 4, not 9"),
        ({"model.init_args.policy.model": "/nowhere/at/all"}, "there is no model folder at /nowhere/at/all"),
        (
            {"model.init_args.trace_template": "footnote"},
            "error: model (pact_lightning.module.PACTModule).trace_template: Expected a typing.Literal['turns', "
            "'user_block', 'system_block']. Got value: footnote",
        ),
        (
            {"model.init_args.temprature": 1.0},
            "error: model (pact_lightning.module.PACTModule): Option 'temprature' is not accepted",
        ),
        ({"trainer.max_epochs": "x"}, "error: trainer.max_epochs: Expected a <class 'int'>. Got value: x"),
        (
            {"data.init_args.limits.max_turns": "many"},
            "RolloutDataModule).limits.max_turns: Expected a <class 'int'>. Got value: many",
        ),
        (
            {"data.init_args.train": bundled("holiday", 3)},
            "error: the bundled world has no split 'holiday'; choose one of train, validation, test, longer",
        ),
        (
            {"data.class_path": "pact_lightning.nowhere.Data"},
            "error: data (pact_lightning.nowhere.Data): module 'pact_lightning' has no attribute 'nowhere'",
        ),
        (
            {"data.init_args.train": {"class_path": "test_cli.NoSource"}},
            "NoSource does not implement protocol TaskSource",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_ends_in_one_sentence_before_the_policy_is_loaded(refusal, changes, sentence):
    assert sentence in refusal(changes)


def test_an_unknown_option_is_named(refusal):
    assert "--trainer.max_epoochs" in refusal({}, "--trainer.max_epoochs=3")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_verb_without_tasks_is_refused(refusal, verb):
    name = {"validate": "validation"}.get(verb, verb)
    expected = f"error: there are no {name} tasks; set data.{name} in the recipe"
    assert refusal({f"data.init_args.{name}": None}, verb=verb) == expected


def test_two_tasks_of_one_id_from_any_source_are_refused(refusal):
    changes = {"data.init_args.train": {"class_path": f"{__name__}.Twins"}}
    assert "two train tasks have the id 'train-1'" in refusal(changes)


class NoSource:
    """Has no ``load``."""


class Twins:
    """A source of two tasks with the same id."""

    def load(self) -> Sequence[Task]:
        task = make_task("train", 1)
        return [task, replace(task, kind="twin")]


def test_an_error_at_work_is_not_passed_off_as_a_mistake_in_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(pact_lightning.policy_module.PolicyModule, "apply_gradients", _raises_value_error)
    with pytest.raises(ValueError, match="deep inside"):
        main(["fit", "-c", saved(tmp_path)])
    assert PactCLI.latest.at_work


def _raises_value_error(self):
    raise ValueError("deep inside")

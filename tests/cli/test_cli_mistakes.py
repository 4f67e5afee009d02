"""The command line: the one sentence that every mistake ends in, before the policy is loaded."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cli_recipe import bundled, saved
from jsonargparse import ArgumentParser
from test_checkpoint_files import CONTENT, cut, flipped

import pact_lightning
import pact_lightning.training.policy_module
from pact_lightning.cli.main import main
from pact_lightning.resume.checkpoint_files import WholeFileIO
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import load_source, write_jsonl
from pact_lightning.tasks.record import task_to_json
from pact_lightning.types.task import Task


@pytest.fixture
def refusal(tmp_path, capsys, monkeypatch):
    """Runs a fit that must fail before the policy is loaded; gives the sentence."""

    def never(config):
        raise AssertionError("the policy was loaded")

    def run(changes, *arguments, verb="fit"):
        monkeypatch.setattr(pact_lightning.training.policy_module, "load_policy", never)
        with pytest.raises(SystemExit) as stopped:
            main([verb, "-c", saved(tmp_path, changes), *arguments])
        assert stopped.value.code == 2
        last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def jsonl(path):
    return {"data.init_args.train": {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": path}}}


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
    record["tools"][1] = {"type": "function", "function": {"name": record["tools"][1]["function"]["name"]}}
    path = tmp_path / "tasks.jsonl"
    sentence = refusal(lines(path, record))
    assert sentence.startswith(f"error: {path}, line 2: field `tools[1].function.parameters`: is missing")


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
    where = f"error: {tmp_path / 'tasks.jsonl'}, line 2: field `environment.class_path`: "
    assert sentence.startswith(f"{where}the environment class 'nowhere.Shop' cannot be imported")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer.gradient_clip_val": 1.0}, "set model.optimizer.gradient_clip"),
        ({"trainer.precision": "bf16-mixed"}, "trainer.precision does not work with manual optimisation"),
        ({"trainer.accumulate_grad_batches": 4}, "set data.prompts_per_step"),
        ({"data.init_args.limits": {"rows": 0}}, "data.limits.rows must be above 0, not 0"),
        ({"data.init_args.limits": {"admit_every": 0}}, "data.limits.admit_every must be above 0, not 0"),
        ({"model.init_args.head_chunk": 0}, "model.head_chunk (0) and model.max_tokens_per_forward"),
        (
            {"model.init_args.policy.model": "nobody/nothing"},
            "policy.model 'nobody/nothing' is not a local folder, and",
        ),
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
        ({"data.init_args.max_prompt_tokens": 10}, "none of 4 has a prompt within 10 tokens, and the shortest has 147"),
        ({"data.init_args.prompts_per_step": 3}, "must be a multiple of data.prompts_per_step"),
        ({"model.init_args.max_tokens_per_forward": 700}, "raise that or lower data.max_prompt_tokens"),
        ({"model.init_args.anchor_probability": 2.0}, "anchor_probability must be between 0 and 1, not 2.0"),
        ({"model.init_args.level": 9}, "level must be a level from 0 to 4, not 9"),
        ({"model.init_args.policy.model": "/nowhere/at/all"}, "there is no model folder /nowhere/at/all"),
        (
            {"model.init_args.trace_template": "footnote"},
            "error: model (pact_lightning.PACTModule).trace_template: Expected one of 'turns', 'user_block', "
            "'system_block'. Got value: footnote",
        ),
        (
            {"model.init_args.temprature": 1.0},
            "error: model (pact_lightning.PACTModule): Option 'temprature' is not accepted; the options here are ",
        ),
        (
            {"data.init_args.rollout_per_prompt": 4},
            "Option 'rollout_per_prompt' is not accepted; did you mean 'rollouts_per_prompt'?",
        ),
        (
            {"model.init_args.policy.lorar": 4},
            "Group 'policy' does not accept option 'lorar'; did you mean 'lora_r'?",
        ),
        ({"data.init_args.limits.max_turn": 4}, "Group 'limits' does not accept option 'max_turn'; did you mean"),
        ({"data.init_args.train.init_args.coutn": 4}, "Option 'coutn' is not accepted; did you mean 'count'?"),
        ({"trainer.max_epoch": 4}, "does not accept option 'trainer.max_epoch'; did you mean 'max_epochs'?"),
        ({"modle": {"class_path": "x"}}, "does not accept option 'modle.class_path'; did you mean 'model'?"),
        ({"modle": {}}, "recipe.yaml: there is no field 'modle'; did you mean 'model'?"),
        (
            {"model.class_path": "pact_lightning.PactModule"},
            "has no attribute 'PactModule'; did you mean 'PACTModule'?",
        ),
        ({"trainer.max_epochs": "x"}, "error: trainer.max_epochs: Expected a value of type int. Got value: x"),
        (
            {"data.init_args.limits.max_turns": "many"},
            "RolloutDataModule).limits.max_turns: Expected a value of type int. Got value: many",
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
            {"data.init_args.train": {"class_path": "test_cli_mistakes.NoSource"}},
            "NoSource is no task source: name a class with a method load()",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_ends_in_one_sentence_before_the_policy_is_loaded(refusal, changes, sentence):
    assert sentence in refusal(changes)


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--trainer.max_epoochs=3", "--trainer.max_epochs"),
        ("--policy.model=x", "--model.init_args.policy.model"),
        ("--learning_rate=1", "--model.init_args.optimizer.learning_rate"),
        ("--model.init_args.policy.lorar=3", "'lora_r'"),
    ],
)
def test_an_unknown_option_is_named_and_the_nearest_one(refusal, option, near):
    sentence = refusal({}, option)
    assert option.rpartition(".")[2].partition("=")[0] in sentence
    assert sentence.endswith(f"; did you mean {near}?")


def test_a_source_that_is_an_option_is_told_what_it_lacks(refusal):
    sentence = refusal({}, "--data.init_args.train", "test_cli_mistakes.NoSource")
    assert "test_cli_mistakes.NoSource is no task source: name a class with a method load()" in sentence


class Unhinted:
    """A source without type hints."""

    def load(self):
        return [make_task("train", 1)]


@pytest.mark.parametrize("given", [Unhinted(), [make_task("train", 1)]], ids=["a source without hints", "a list"])
def test_a_source_needs_no_type_hints(given):
    assert [task.id for task in load_source(given)] == ["train-1"]


def test_a_recipe_takes_a_source_without_type_hints(tmp_path, capsys):
    changes = {"data.init_args.train": {"class_path": "test_cli_mistakes.Unhinted"}}
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", saved(tmp_path, changes), "--print_config"])
    assert stopped.value.code == 0
    assert "test_cli_mistakes.Unhinted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("model", "pact_lightning.PACTModule", "anchor_probability ANCHOR_PROBABILITY"),
        ("data", "pact_lightning.RolloutDataModule", "limits.tool_timeout_s TOOL_TIMEOUT_S Seconds that one tool call"),
    ],
)
def test_init_args_have_a_help_without_a_recipe(capsys, name, option, said):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--{name}.help", option])
    assert stopped.value.code == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", [name for name in pact_lightning.__all__ if name.endswith(("Module", "Tasks"))])
def test_every_option_has_its_meaning_and_its_default_in_the_help(name):
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(pact_lightning, name))
    bare = [action.dest for action in parser._actions if not action.help]
    assert bare == []
    told = " ".join(parser.format_help().split())
    options = [key for key in parser.get_defaults().keys() if f"--{key} " in told]  # noqa: SIM118  # leaves
    required = told.count("(required")
    assert told.count("default: ") >= len(options) - required


@pytest.mark.parametrize("recipe", [["-c", "{}"], ["--config={}"], ["--config", "{}"]])
@pytest.mark.parametrize("option", [["--trainer.max_epochs", "3"], ["--model.init_args.anchor_probability=0.5"]])
def test_an_option_in_front_of_a_recipe_is_refused_rather_than_overridden(tmp_path, capsys, recipe, option):
    path = saved(tmp_path)
    behind = [word.format(path) for word in recipe]
    for command in (["fit"], ["plan"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "-c", path, *option, *behind])
        assert stopped.value.code == 2
        sentence = capsys.readouterr().err
        assert f"error: {option[0].partition('=')[0]} comes before a recipe ({' '.join(behind)})" in sentence
        assert "put options after the recipes" in sentence


def test_the_order_of_what_overrides_nothing_is_free(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--print_config", "-c", saved(tmp_path)])
    assert stopped.value.code == 0
    assert "anchor_probability: 0.0" in capsys.readouterr().out


def test_a_mistyped_command_is_told_all_there_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["chekc"])
    assert stopped.value.code == 2
    assert (
        "there is no command 'chekc'; the commands are fit, validate, test, predict, init, tasks"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_verb_without_tasks_is_refused(refusal, verb):
    name = {"validate": "validation"}.get(verb, verb)
    expected = f"error: there are no {name} tasks; set data.{name} in the recipe"
    assert refusal({f"data.init_args.{name}": None}, verb=verb) == expected


def test_two_tasks_of_one_id_from_any_source_are_refused(refusal):
    changes = {"data.init_args.train": {"class_path": f"{__name__}.Twins"}}
    assert "Twins, task 1: field `id`: 'train-1' is already the id of task 0" in refusal(changes)


@pytest.mark.parametrize(
    ("field", "old"),
    [
        ("model.class_path", "pact_lightning.module.PACTModule"),
        ("data.class_path", "pact_lightning.datamodule.RolloutDataModule"),
        ("data.init_args.train.class_path", "pact_lightning.tasks.nowhere.JsonlTasks"),
        ("trainer.callbacks", [{"class_path": "pact_lightning.annealing.AnnealingCallback"}]),
    ],
)
def test_a_class_path_from_before_the_move_is_told_with_the_short_one(refusal, field, old):
    sentence = refusal({field: old})
    path = old if isinstance(old, str) else old[0]["class_path"]
    assert sentence.endswith(f"; {path} is now pact_lightning.{path.rpartition('.')[2]}")


def test_a_task_file_with_an_environment_from_before_the_move_is_told_the_short_path(tmp_path, refusal):
    task = task_to_json(make_task("train", 1))
    task["environment"]["class_path"] = "pact_lightning.environments.bundled.tools.BundledWorld"
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(task) + "\n")
    assert refusal(jsonl(str(path))).endswith(
        "pact_lightning.environments.bundled.tools.BundledWorld is now pact_lightning.BundledWorld"
    )


class NoSource:
    """Has no ``load``."""


class Twins:
    """A source of two tasks with the same id."""

    def load(self) -> Sequence[Task]:
        task = make_task("train", 1)
        return [task, replace(task, kind="twin")]


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_missing_checkpoint_is_named(tmp_path, refusal, verb):
    path = str(tmp_path / "nowhere.ckpt")
    assert f"there is no checkpoint {path}" in refusal({}, "--ckpt_path", path, verb=verb)


DAMAGES = {
    "cut off": (cut, "is truncated or not a checkpoint"),
    "changed": (flipped, "is damaged at"),
}


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_by_its_path(tmp_path, refusal, verb, damage):
    change, told = DAMAGES[damage]
    path = checkpoint(tmp_path / "last.ckpt")
    path.write_bytes(change(path.read_bytes()))
    sentence = refusal({}, "--ckpt_path", str(path), verb=verb)
    assert f"{path} {told}" in sentence
    assert "`last` for the newest complete one in its dirpath" in sentence


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_an_evaluation_of_last_without_any_whole_checkpoint_scores_nothing_else(tmp_path, refusal, verb):
    folder = tmp_path / "run" / "checkpoints"
    assert f"there is no complete checkpoint in {folder}" in refusal({}, "--ckpt_path", "last", verb=verb)
    path = checkpoint(folder / "last.ckpt")
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged at"):
        assert f"there is no complete checkpoint in {folder}" in refusal({}, "--ckpt_path", "last", verb=verb)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("by_name", [True, False])
def test_an_object_in_a_checkpoint_is_named(tmp_path, refusal, verb, by_name):
    path = checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", callbacks={"mine": Path("/somewhere")})
    sentence = refusal({}, "--ckpt_path", "last" if by_name else str(path), verb=verb)
    assert f"{path} holds an object (pathlib" in sentence
    assert "give --weights_only false" in sentence
    assert path.exists()


@pytest.mark.parametrize("by_name", [True, False])
def test_a_fit_does_not_go_on_from_weights_alone(tmp_path, refusal, by_name):
    path = checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    sentence = refusal({}, "--ckpt_path", "last" if by_name else str(path))
    assert f"{path} contains only the weights" in sentence


def test_saving_weights_alone_is_refused(tmp_path, refusal):
    weights = {"dirpath": str(tmp_path), "save_weights_only": True}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": weights}
    assert "ModelCheckpoint has save_weights_only" in refusal({"trainer.callbacks": [callback]})


def checkpoint(path, **parts):
    """A file such as a fit writes, without an optimiser's state."""
    WholeFileIO().save_checkpoint(CONTENT | parts, path)
    return path


def test_a_source_without_tasks_is_named(tmp_path, refusal):
    path = tmp_path / "empty.jsonl"
    path.touch()
    assert "the source of the train tasks, data.train, is empty" in refusal(jsonl(str(path)))

"""A study: its file, its commands and its processes; and a real small one, killed and resumed (slow)."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cli_recipe import recipe

from pact_lightning.cli.compare_study import _check_checkpoints, read_study
from pact_lightning.cli.main import main
from pact_lightning.compare.processes import run_cells, seconds_left
from pact_lightning.compare.results import Cost
from pact_lightning.compare.steps import CellPlan, Fields, Step, plan_cell
from pact_lightning.compare.study import EvaluationPlan, Method, Study, Tuning, Variation
from pact_lightning.compare.tuning import plan_cells, plan_trials, tuned_places

FIELDS = Fields(("seed_everything", "data.init_args.seed"))
RATE = "model.init_args.optimizer.learning_rate"


def study(**changes):
    methods = {"pact": Method(), "grpo": Method(["grpo.yaml"], {"a": 1})}
    return Study(
        **{"recipe": "r.yaml", "folder": "out", "methods": methods, "seeds": [0, 1], "against": "pact"} | changes
    )


def tuned(**changes):
    knobs = {RATE: [1e-3, 3e-3, 1e-2]}
    methods = {"pact": Method(knobs={"beta": [0.1, 1.0]}), "grpo": Method(knobs={"clip": [0.2, 0.3, 0.4]})}
    tuning = {"trials": 4, "seeds": [100], "knobs": knobs, "options": {"trainer.max_epochs": 1}} | changes
    return study(methods=methods, tuning=Tuning(**tuning))


def test_a_cell_is_repeated_by_its_command():
    regime = Variation(["sound.yaml"], {"a": 0, "b": None})
    cell = plan_cell(
        study(regimes={"sound": regime}), "grpo", "sound", 1,
        within=Path("out/sound/grpo"), options={RATE: 0.001}, fields=FIELDS,
    )  # fmt: skip
    (fit,) = cell.steps
    assert fit.command.startswith(
        f"pact-lightning fit -c r.yaml -c sound.yaml -c grpo.yaml --a 1 --b null --{RATE} 0.001 "
        "--seed_everything 1 --data.init_args.seed 1 "
    )
    assert fit.command.endswith("--ckpt_path last")
    assert cell.folder == Path("out/sound/grpo/seed-1")


def test_every_method_gets_as_many_trials_on_seeds_of_their_own():
    own = tuned()
    assert [len(own.trials(name)) for name in ("pact", "grpo")] == [4, 4]
    assert own.trials("grpo") == tuned().trials("grpo")  # drawn, and always the same
    assert all(setting.keys() == {RATE, "clip"} for setting in own.trials("grpo"))
    assert len({json.dumps(setting) for setting in own.trials("grpo")}) == 4
    fields = {("pact", ""): FIELDS, ("grpo", ""): FIELDS}
    trials = {place: plan_trials(own, place, fields, {}) for place in fields}
    assert {len(of) for of in trials.values()} == {4}
    trial, final = trials["pact", ""][0][0], plan_cells(own, fields, {("pact", ""): {"beta": 1.0}})
    assert "--trainer.max_epochs 1" in trial.steps[0].command
    assert "--seed_everything 100" in trial.steps[0].command
    assert [cell.seed for cell in final] == [0, 1]  # grpo chose nothing
    assert not any("max_epochs" in cell.steps[0].command for cell in final)


def chain(**changes):
    methods = {"rl": Method(after="sft", budget=4), "sft": Method()}
    return study(**{"methods": methods, "against": "sft", "budget": 8} | changes)


def test_a_method_begins_where_another_one_of_its_seed_ended():
    fields = dict.fromkeys([("rl", ""), ("sft", "")], Fields(FIELDS.seeds, ("trainer.max_steps", "schedule_steps")))
    cells = {(cell.method, cell.seed): cell for cell in plan_cells(chain(), fields, {place: {} for place in fields})}
    rl, sft = cells["rl", 1], cells["sft", 1]
    assert rl.start is sft
    assert "--model.init_args.policy.start_from out/sft/seed-1/run/checkpoints/last.ckpt" in rl.steps[0].command
    assert "--trainer.max_epochs -1 --trainer.max_steps 4 --schedule_steps 4 " in rl.steps[0].command
    assert "--trainer.max_epochs -1 --trainer.max_steps 8 --schedule_steps 8 " in sft.steps[0].command
    assert plan_cells(chain(), fields, {("rl", ""): {}}) == []  # sft chose nothing, so neither runs


def test_trials_begin_from_the_chosen_trials_of_the_method_before():
    tuning = Tuning(2, [7], {RATE: [1e-3, 3e-3]}, regime="one", budget=2)
    own = chain(tuning=tuning, regimes={"one": Variation(), "two": Variation()})
    assert tuned_places(own) == [("sft", "one"), ("rl", "one")]  # what begins from another comes behind it
    fields = dict.fromkeys(tuned_places(own), FIELDS)
    chosen = plan_trials(own, ("sft", "one"), fields, {})[1][0]
    (trial,) = plan_trials(own, ("rl", "one"), fields, {7: chosen})[0]
    assert "start_from out/tuning/one/sft/trial-1/seed-7/run/checkpoints/last.ckpt" in trial.steps[0].command
    assert "--trainer.max_steps 2 " in trial.steps[0].command


def test_evaluations_have_settings_and_names_of_their_own():
    plans = [EvaluationPlan(), EvaluationPlan("test", 1.0, 4, "longer", ["longer.yaml"], {"data.x": 8})]
    cell = plan_cell(
        study(), "grpo", "", 0, within=Path("out/grpo"), options={}, fields=FIELDS, evaluations=plans
    )  # fmt: skip
    assert [(step.name, step.split) for step in cell.steps[1:]] == [
        ("validation-temperature-0", "validation"), ("longer-temperature-1", "longer"),
    ]  # fmt: skip
    command = cell.steps[2].command
    assert command.startswith("pact-lightning test -c r.yaml -c grpo.yaml -c longer.yaml --a 1 ")
    assert "--data.x 8 --data.init_args.evaluation.temperature 1.0 --data.init_args.evaluation.samples 4 " in command
    assert command.endswith("--ckpt_path out/grpo/seed-0/run/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match="give it a label"):
        EvaluationPlan("test", options={"a": 1})


def test_a_method_without_a_budget_is_evaluated_as_it_starts():
    methods = {"start": Method(budget=0), "pact": Method()}
    own = study(methods=methods, evaluations=[EvaluationPlan()], tuning=Tuning(2, [7], {RATE: [1e-3, 3e-3]}))
    assert tuned_places(own) == [("pact", "")]
    fields = dict.fromkeys([("start", ""), ("pact", "")], FIELDS)
    start, pact = plan_cells(own, fields, {("start", ""): {}, ("pact", ""): {}})[:2]
    assert [step.name for step in start.steps] == ["validation-temperature-0"]
    assert "--ckpt_path" not in start.steps[0].command
    assert "max_steps" not in start.steps[0].command
    assert [step.name for step in pact.steps] == ["run", "validation-temperature-0"]
    assert start.cost() == Cost()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": {"pact": Method(after="sft")}}, "methods.pact.after: there is no method 'sft'"),
        ({"methods": {"pact": Method(after="pact")}}, "so neither can start"),
        ({"budget": 0}, "at least one optimiser step"),
        ({"tuning": Tuning(1, [9], regime="odd")}, "there is no regime 'odd'"),
        ({"methods": {"pact": Method(budget=0)}}, "methods.pact.budget: 0 trains nothing, .* needs evaluations"),
        (
            {"methods": {"pact": Method(after="b"), "b": Method(budget=0)}, "evaluations": [EvaluationPlan()]},
            "methods.pact.after: 'b' trains nothing",
        ),
        ({"against": "sft"}, "against: there is no method 'sft'"),
        ({"seeds": [1, 1]}, "lists a seed twice"),
        ({"seeds": []}, "at least one method, one regime and one seed"),
        ({"methods": {"../pact": Method()}, "against": "../pact"}, "is used for a folder"),
        ({"methods": {"pact": Method(knobs={"a": [1]})}}, "has knobs, but the study has no tuning"),
        ({"processes": 0}, "at least one cell"),
        ({"tuning": Tuning(1, [1, 2])}, "must be seeds that the final table does not use"),
        ({"tuning": Tuning(2, [7], {RATE: [1e-3]})}, "method pact has 1 settings for 2 trials"),
    ],
)
def test_mistakes_in_a_study(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        study(**changes)


def test_a_file_with_a_mistake_ends_in_one_sentence(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    good = {"recipe": "r", "folder": "o", "methods": {"a": {"options": {"b": 1}}}, "seeds": [0], "against": "a"}
    file.write_text(yaml.safe_dump(good))
    assert read_study(file).methods["a"] == Method(options={"b": 1})
    for changes, sentence in (({"sedes": [0]}, "sedes"), ({"methods": {"a": {"overlay": []}}}, "overlay")):
        file.write_text(yaml.safe_dump(good | changes))
        with pytest.raises(SystemExit) as ended:
            main(["compare", "-c", str(file)])
        told = capsys.readouterr().err
        assert (ended.value.code, sentence in told, told.count("\n")) == (2, True, 1)


def test_the_studies_among_the_recipes_name_files_that_are_there():
    root = Path(__file__).resolve().parent.parent.parent
    studies = sorted((root / "recipes" / "studies").glob("*.yaml"))
    assert studies
    for file in studies:
        own = read_study(file)
        named = [
            own.recipe,
            *(path for part in (*own.methods.values(), *own.regimes.values()) for path in part.overlays),
        ]
        assert [path for path in named if not (root / path).is_file()] == []


def test_overlays_that_list_the_callbacks_anew_leave_a_checkpoint_that_a_cell_goes_on_from():
    root = Path(__file__).resolve().parent.parent.parent
    trainers = {
        path.stem: (yaml.safe_load(path.read_text()) or {}).get("trainer", {})
        for path in sorted((root / "recipes" / "methods").glob("*.yaml"))
    }
    replaced = {name: trainer for name, trainer in trainers.items() if "callbacks" in trainer}
    assert {"sft", "adaprefix"} <= replaced.keys()
    for name, trainer in replaced.items():
        _check_checkpoints((name, ""), trainer)


def cells_of(folder, *commands):
    """Cells of one step each, which is the command itself; help and mistakes take no seconds."""
    steps = [Step("run", folder / str(number), tuple(words)) for number, words in enumerate(commands)]
    return [CellPlan("m", "", number, step.cell, (step,)) for number, step in enumerate(steps)]


def test_a_failed_cell_is_told_and_the_others_go_on(tmp_path):
    told = []
    cells = cells_of(tmp_path, ["--help"], ["nonsense"], ["--help"])
    cells.append(replace(cells[0], folder=tmp_path / "3", steps=(Step("run", tmp_path / "3", ("x",)),), start=cells[1]))
    assert run_cells(cells, 1, told.append) == [cells[1], cells[3]]
    assert [cell.is_done for cell in cells] == [True, False, True, False]
    failure = next(line for line in told if "; failed: " in line)
    assert "there is no command 'nonsense'" in failure
    assert "log.txt" in failure
    assert failure.startswith("3 of 4, about ")
    assert f"not run: {cells[3].folder} begins from {cells[1].folder}" in told[-1]
    told.clear()
    assert run_cells(cells[:3], 2, told.append) == [cells[1]]  # it alone is run again, twice as before
    assert [line for line in told if line.startswith("begins: ")] == [f"begins: {cells[1].folder}"] * 2


def test_a_cell_waits_for_the_one_that_it_begins_from(tmp_path):
    told = []
    first, second = cells_of(tmp_path, ["--help"], ["--help"])
    second = replace(second, steps=(replace(second.steps[0], start=first.steps[0].record),), start=first)
    assert run_cells([second, first], 2, told.append) == []
    assert [line.split("; ")[-1] for line in told] == [
        f"begins: {first.folder}", f"done: {first.folder}", f"begins: {second.folder}", f"done: {second.folder}",
    ]  # fmt: skip
    first.steps[0].finish({"commit": "c", "machine": "m"}, 1234.0)
    with pytest.raises(ValueError, match="from a run that was made again since"):
        assert second.is_done


def test_the_time_that_is_left_is_told_by_the_cells_that_are_done(tmp_path):
    cells = cells_of(tmp_path, *[["--help"]] * 4)
    slow, fast, *rest = [replace(cell, method=method) for cell, method in zip(cells, "abac", strict=True)]
    assert seconds_left(rest, [], 2) is None
    for cell, seconds in ((slow, 90.0), (fast, 30.0)):
        cell.steps[0].finish({"commit": "c", "machine": "m"}, seconds)
    assert seconds_left(rest, [slow, fast], 2) == (90.0 + 60.0) / 2  # another of slow's method, and a usual one


def test_what_was_made_by_something_else_is_not_taken_for_done(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("a: 1\n")
    step = Step("run", tmp_path, ("fit", "-c", str(overlay)))
    step.finish({"commit": "c", "machine": "m"}, 1.0)
    assert step.is_done()
    with pytest.raises(ValueError, match="another command since"):
        Step("run", tmp_path, ("fit", "-c", str(overlay), "--x", "1")).is_done()
    overlay.write_text("a: 2\n")
    with pytest.raises(ValueError, match="a recipe that has changed since"):
        step.is_done()


def written(folder):
    """A study of two methods and seeds, tuned by two trials each, in a folder; all of it takes a phase."""
    config = recipe(Path())
    config["trainer"]["logger"] = True
    config["trainer"]["callbacks"][1]["init_args"] = {"save_last": True, "save_on_train_epoch_end": True}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    own = {
        "recipe": "small.yaml",
        "folder": "out",
        "methods": {"pact": {}, "matchtir": {"after": "pact", "options": {"model.init_args.anchor_probability": 1.0}}},
        "budget": 1,
        "seeds": [0, 1],
        "against": "pact",
        "metric": "turns",
        "evaluations": [{"split": "test", "temperature": 1.0, "samples": 2}],
        "tuning": {"trials": 2, "seeds": [9], "knobs": {RATE: [1e-3, 3e-3]}, "metric": "turns"},
        "processes": 2,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(own))


def started(folder, **settings):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pact_lightning.cli.main", "compare", "-c", "study.yaml"]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **settings)


def tidy(folder):
    with (folder / "out" / "comparison.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_is_stopped_and_killed_gives_the_csv_of_one_that_is_not(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
        written(folder)
    undisturbed = started(whole)
    told = undisturbed.communicate()[1]
    assert undisturbed.returncode == 0, told
    rows = tidy(whole)
    assert {(row["method"], row["seed"], row["split"]) for row in rows} == {
        (method, seed, split) for method in ("pact", "matchtir") for seed in "01" for split in ("validation", "test")
    }
    table = (whole / "out" / "comparison.md").read_text()
    assert "Chosen for pact: " in table
    assert "Caution: 2 of the 4 evaluated tasks were used to choose settings too" in table
    for number in (signal.SIGINT, signal.SIGKILL):
        run = started(stopped)
        until = time.monotonic() + 300
        wanted = 2 if number == signal.SIGINT else 6
        while len(list(stopped.rglob("run/metrics.csv"))) < wanted and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(number)
        told = run.communicate()[1]
        assert run.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), told
        assert not _runs_in(stopped)
    last = started(stopped)
    told = last.communicate()[1]
    assert last.returncode == 0, told
    assert tidy(stopped) == rows
    again = started(stopped)
    assert "begins" not in again.communicate()[1]


def _runs_in(folder):
    """The processes whose present folder it is; those that are just ending get a second."""
    for _ in range(50):
        found = [link for link in Path("/proc").glob("[0-9]*/cwd") if _leads_to(link, folder)]
        if not found:
            return []
        time.sleep(0.1)
    return found


def _leads_to(link, folder):
    try:
        return link.resolve() == folder.resolve() and (link.parent / "cmdline").read_bytes()
    except OSError:
        return False

"""A study at the command line: its file is read, each method's recipe is checked, then its cells are run."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from pact_lightning.cli.compare_report import write
from pact_lightning.cli.plan_recipe import parsed_recipe
from pact_lightning.compare.processes import usual_processes
from pact_lightning.compare.runs import TABLE
from pact_lightning.compare.steps import CellPlan, Fields, recipe_words
from pact_lightning.compare.study import Study
from pact_lightning.compare.tables import report
from pact_lightning.compare.tuning import (
    FieldsByPlace,
    Place,
    places_of,
    plan_cells,
    plan_trials,
    run_study,
    tuned_places,
)
from pact_lightning.resume.lock import hold, release
from pact_lightning.utils.yaml_text import check_yaml_file, read_yaml

_SEEDS = ("seed_everything", "model.init_args.seed", "model.init_args.policy.seed", "data.init_args.seed")
"""Fields that take a cell's seed, as far as its module and its data have them."""
_SCHEDULE = "model.init_args.optimizer.schedule_steps"


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        ValueError: There is a mistake in it.
        OSError: It cannot be read.
    """
    check_yaml_file(path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    parsed = parser.parse_object(read_yaml(path.read_text(encoding="utf-8")))
    return Study(**vars(parser.instantiate_classes(parsed)))


def compare_study(given: argparse.Namespace) -> int:
    """Run a study and write its comparison.

    Args:
        given: The command's options.

    Returns:
        The exit status: 1 where a cell failed.

    Raises:
        ValueError: There is a mistake in the study or in a recipe.
    """
    if given.runs:
        raise ValueError(f"{given.runs[0]} is a run, and -c names a study; give one or the other")
    study = read_study(given.config)
    recipes = {place: parsed_recipe(recipe_words(study, *place, {})) for place in places_of(study)}
    fields = {place: _fields(place, recipe) for place, recipe in recipes.items()}
    for place, recipe in recipes.items():
        _check_checkpoints(place, recipe["trainer"])
        if study.methods[place[0]].after is not None and not _has(recipe, "model.init_args.policy.start_from"):
            raise ValueError(
                f"methods.{place[0]}.after: the module of its recipe has no policy.start_from to begin from"
            )
    for plan in study.evaluations:
        for method in study.methods if plan.overlays or plan.options else ():
            parsed_recipe(recipe_words(study, method, next(iter(study.regimes)), plan.options, plan.overlays))
    if given.dry_run:
        _print_commands(study, fields)
        return 0
    accelerator = str(next(iter(recipes.values()))["trainer"]["accelerator"])
    processes = given.processes or study.processes or usual_processes(accelerator)
    hold(Path(study.folder))
    try:
        cells, remarks = run_study(study, fields, processes, _tell)
    finally:
        release(Path(study.folder))
    for remark in remarks:
        _tell(remark)
    if not cells:
        raise ValueError(f"no cell of {given.config} finished; see the log.txt files in {study.folder}")
    metric, against = given.metric or study.metric, given.against or study.against
    folder = given.output or Path(study.folder)
    write(cells, metric, against, folder)
    text = "\n\n".join([report(cells, metric, against).rstrip(), *remarks]) + "\n"
    (folder / TABLE).write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(remark.startswith("Failed:") or remark.startswith("No trial") for remark in remarks))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # standard output is for the table


def _fields(place: Place, recipe: Mapping[str, Any]) -> Fields:
    found = tuple(field for field in _SEEDS if _has(recipe, field))
    if len(found) < 2:
        raise ValueError(f"no part of the recipe of method {place[0]} takes a seed, so its seeds would all be the same")
    if _has(recipe, _SCHEDULE) and recipe["model"]["init_args"]["optimizer"]["schedule"] == "cosine":
        return Fields(found, ("trainer.max_steps", _SCHEDULE))
    return Fields(found)


def _has(recipe: Any, field: str) -> bool:
    for name in field.split("."):
        if not isinstance(recipe, Mapping) or name not in recipe:
            return False
        recipe = recipe[name]
    return True


def _check_checkpoints(place: Place, trainer: Mapping[str, Any]) -> None:
    """Check that the cells can go on and be evaluated, each from checkpoints in its own folder.

    Raises:
        ValueError: They cannot.
    """
    callbacks = trainer["callbacks"] or []
    found = [
        callback.get("init_args", {})
        for callback in (callbacks if isinstance(callbacks, list) else [callbacks])
        if callback["class_path"].endswith(".ModelCheckpoint")
    ]
    if any(init_args.get("dirpath") for init_args in found):
        raise ValueError(
            f"the recipe of method {place[0]} names the dirpath of a ModelCheckpoint, where all cells would save; "
            "leave it out"
        )
    if not any(init_args.get("save_last") for init_args in found):
        raise ValueError(
            f"the recipe of method {place[0]} keeps no last.ckpt, by which a cell goes on and is evaluated; give it a "
            "ModelCheckpoint with save_last: true"
        )


def _print_commands(study: Study, fields: FieldsByPlace) -> None:
    first: dict[Place, dict[int, CellPlan]] = {}
    trials: list[CellPlan] = []
    for method, regime in tuned_places(study):
        planned = plan_trials(
            study, (method, regime), fields, first.get((study.methods[method].after or "", regime), {})
        )
        first[method, regime] = {cell.seed: cell for cell in planned[0]}
        trials += [cell for row in planned for cell in row]
    for cell in [*trials, *plan_cells(study, fields, {place: {} for place in places_of(study)})]:
        for step in cell.steps:
            print(step.command)  # noqa: T201  # what the command is for
    if trials:
        print("# later commands begin from the trials that are chosen, and get their settings")  # noqa: T201

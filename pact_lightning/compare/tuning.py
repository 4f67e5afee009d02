"""A study run from its file to its cells: first the trials of each method, then the cells with what they chose."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pact_lightning.compare.processes import run_cells
from pact_lightning.compare.results import Cell, Setting
from pact_lightning.compare.steps import CellPlan, Fields, plan_cell
from pact_lightning.compare.study import Study, Tuning
from pact_lightning.utils.files import write_json

Place = tuple[str, str]
"""Method and regime."""
FieldsByPlace = Mapping[Place, Fields]
"""What a cell fills in, by method and regime."""
Trials = list[list[CellPlan]]
"""Trials of a method: of each setting a cell for every seed of the tuning."""

_CHOSEN = "chosen.json"


def places_of(study: Study) -> list[Place]:
    """Return every method in every regime."""
    return [(method, regime) for regime in study.regimes for method in study.methods]


def tuned_places(study: Study) -> list[Place]:
    """Return the methods and regimes that have trials of their own; a method stands behind the one it begins from."""
    if study.tuning is None:
        return []
    regimes = [study.tuning.regime] if study.tuning.regime is not None else list(study.regimes)
    methods = sorted(filter(study.trials, study.methods), key=_depth(study))
    return [(method, regime) for method in methods for regime in regimes]


def _depth(study: Study) -> Callable[[str], int]:
    return lambda method: len(study.chain(method))


def plan_trials(study: Study, place: Place, fields: FieldsByPlace, starts: Mapping[int, CellPlan]) -> Trials:
    """Plan the trials of a method: of each setting a cell for every seed of the tuning.

    Args:
        study: The study, which has a tuning.
        place: Method and regime.
        fields: What a cell fills in.
        starts: By seed, the cells that the trials begin from; none where they begin from the recipe's policy.
    """
    tuning, (method, regime) = study.tuning, place
    assert tuning is not None
    return [
        [
            plan_cell(
                study, method, regime, seed,
                within=_tuning_folder(study, method, regime) / f"trial-{number}",
                options={**tuning.options, **setting},
                fields=fields[place],
                budget=study.budget_of(method) if tuning.budget is None else tuning.budget,
                start=starts.get(seed),
                evaluations=[] if tuning.evaluation is None else [tuning.evaluation],
            )
            for seed in tuning.seeds
        ]
        for number, setting in enumerate(study.trials(method))
    ]  # fmt: skip


def _tuning_folder(study: Study, method: str, regime: str) -> Path:
    return Path(study.folder) / "tuning" / regime / method


def plan_cells(study: Study, fields: FieldsByPlace, chosen: Mapping[Place, Mapping[str, Any]]) -> list[CellPlan]:
    """Plan the cells of the final table; a method without a choice has none, nor has one that begins from it."""
    planned: dict[tuple[Place, int], CellPlan] = {}

    def plan(place: Place, seed: int) -> CellPlan:
        method, regime = place
        if (place, seed) not in planned:
            before = study.methods[method].after
            planned[place, seed] = plan_cell(
                study, method, regime, seed,
                within=Path(study.folder) / regime / method,
                options=chosen[place],
                fields=fields[place],
                budget=study.budget_of(method),
                start=None if before is None else plan((before, regime), seed),
                evaluations=study.evaluations,
            )  # fmt: skip
        return planned[place, seed]

    return [
        plan((method, regime), seed)
        for seed in study.seeds
        for method, regime in places_of(study)
        if all((name, regime) in chosen for name in study.chain(method))
    ]


def run_study(
    study: Study, fields: FieldsByPlace, processes: int, tell: Callable[[str], None]
) -> tuple[list[Cell], list[str]]:
    """Run what of a study is not done yet.

    Args:
        study: The study.
        fields: By method and regime, the fields that a cell fills in.
        processes: Number of cells at the same time.
        tell: Takes a line about what happens.

    Returns:
        The finished cells, and remarks: of failed cells and trials, of chosen settings, of tasks that were used twice.
    """
    trials, choices, remarks = _tune(study, fields, processes, tell)
    chosen: dict[Place, Mapping[str, Any]] = {}
    for method, regime in places_of(study):
        if study.tuning is None or not study.trials(method):
            chosen[method, regime] = {}
        elif (choice := choices.get((method, study.tuning.regime or regime))) is not None:
            chosen[method, regime] = choice["options"]
    cells = plan_cells(study, fields, chosen)
    lost = run_cells(cells, processes, tell)
    finished = [cell.read() for cell in cells if cell not in lost]
    remarks += [f"Failed: {cell.folder}." for cell in lost]
    return finished, remarks + _tasks_used_twice(study, trials, finished)


def _tune(
    study: Study, fields: FieldsByPlace, processes: int, tell: Callable[[str], None]
) -> tuple[dict[Place, Trials], dict[Place, dict[str, Any]], list[str]]:
    """Run the trials and choose, in rounds: a method's trials begin from the chosen trials of the one before it."""
    trials: dict[Place, Trials] = {}
    choices: dict[Place, dict[str, Any]] = {}
    remarks: list[str] = []
    depth = _depth(study)
    for _, of in itertools.groupby(tuned_places(study), key=lambda place: depth(place[0])):
        places = list(of)
        for place in places:
            before = study.methods[place[0]].after
            if before is None or (before, place[1]) in choices:
                starts = {} if before is None else _chosen_trial(trials, choices, (before, place[1]))
                trials[place] = plan_trials(study, place, fields, starts)
        open_trials = [
            cell for place in places if not _choice_of(study, place) for row in trials.get(place, ()) for cell in row
        ]
        remarks += [f"Failed trial: {cell.folder}." for cell in run_cells(open_trials, processes, tell)]
        for place in places:
            choice = _choice_of(study, place) or _choose(study, place, trials.get(place, ()))
            name = " in ".join(filter(None, place))
            if choice is None:
                remarks.append(f"No trial of {name} finished, so it has no runs.")
                continue
            choices[place] = choice
            scores = ", ".join("failed" if row["score"] is None else f"{row['score']:.3f}" for row in choice["trials"])
            remarks.append(f"Chosen for {name}: {choice['options']} (trials: {scores}).")
    return trials, choices, remarks


def _chosen_trial(
    trials: Mapping[Place, Trials], choices: Mapping[Place, Mapping[str, Any]], place: Place
) -> dict[int, CellPlan]:
    choice = choices[place]
    number = [row["options"] for row in choice["trials"]].index(choice["options"])
    return {cell.seed: cell for cell in trials[place][number]}


def _choice_of(study: Study, place: Place) -> dict[str, Any] | None:
    """Return an earlier choice; once cells may have been run by it, it stays.

    Raises:
        ValueError: It was made among other settings.
    """
    path = _tuning_folder(study, *place) / _CHOSEN
    if not path.is_file():
        return None
    choice: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if [each["options"] for each in choice["trials"]] != study.trials(place[0]):
        raise ValueError(f"{path} was chosen from other settings; give the study another folder, or delete this file")
    return choice


def _choose(study: Study, place: Place, trials: Sequence[Sequence[CellPlan]]) -> dict[str, Any] | None:
    """Choose the setting of the best score, the first of equals, and note it; ``None`` where all trials failed."""
    if not trials:
        return None
    assert study.tuning is not None
    settings = study.trials(place[0])
    scores = [_score(study.tuning, [cell.read() for cell in of]) if _all_done(of) else None for of in trials]
    known = [(score, -number) for number, score in enumerate(scores) if score is not None]
    if not known:
        return None
    best = settings[-max(known)[1]]
    rows = [{"options": each, "score": score} for each, score in zip(settings, scores, strict=True)]
    choice = {"options": best, "trials": rows}
    write_json(_tuning_folder(study, *place) / _CHOSEN, choice)
    return choice


def _all_done(cells: Sequence[CellPlan]) -> bool:
    return all(cell.is_done for cell in cells)


def _score(tuning: Tuning, cells: Sequence[Cell]) -> float:
    means = []
    for cell in cells:
        found = cell.last(_tuning_setting(tuning, cell))
        if found is None or tuning.metric not in found.scores:
            raise ValueError(f"tuning.metric: the trials have no {tuning.metric}; name a metric of their evaluation")
        means.append(fmean(found.scores[tuning.metric].values()))
    return fmean(means)


def _tuning_setting(tuning: Tuning, cell: Cell) -> Setting:
    if tuning.evaluation is not None:
        return Setting(tuning.evaluation.shown, tuning.evaluation.temperature)
    within = [each.setting for each in cell.evaluations if each.steps is not None]
    if not within:
        raise ValueError("tuning: the trials validate nothing; give tuning an evaluation")
    return within[-1]


def _tasks_used_twice(study: Study, trials: Mapping[Place, Trials], finished: Sequence[Cell]) -> list[str]:
    """Tell how many tasks of the final table were used to choose settings."""
    if study.tuning is None:
        return []
    tuned: set[str] = set()
    for cell in (cell for of in trials.values() for row in of for cell in row if cell.is_done):
        read = cell.read()
        last = read.last(_tuning_setting(study.tuning, read))
        tuned |= set(last.scores.get(study.tuning.metric, ())) if last else set()
    shown = {
        task for cell in finished for each in cell.evaluations for task in each.scores.get(study.metric, ())
    }  # fmt: skip
    twice = tuned & shown
    if not twice:
        return []
    return [
        f"Caution: {len(twice)} of the {len(shown)} evaluated tasks were used to choose settings too, such as "
        f"{min(twice)}; give tuning.options other validation tasks."
    ]

"""A study run from its file to its cells: first the trials of each method, then the cells with what they chose."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pact_lightning.compare.processes import run_cells
from pact_lightning.compare.results import Cell, Setting
from pact_lightning.compare.steps import CellPlan, plan_cell
from pact_lightning.compare.study import Study, Tuning
from pact_lightning.utils.files import write_json

Place = tuple[str, str]
"""Method and regime."""
Fields = Mapping[Place, Sequence[str]]
"""Fields of the recipe that take the seed."""

_CHOSEN = "chosen.json"


def places_of(study: Study) -> list[Place]:
    """Return every method in every regime."""
    return [(method, regime) for regime in study.regimes for method in study.methods]


def plan_trials(study: Study, fields: Fields) -> dict[Place, list[list[CellPlan]]]:
    """Plan the trials, by method and regime: of each setting a cell for every seed of the tuning."""
    tuning = study.tuning
    if tuning is None:
        return {}
    evaluations = [] if tuning.evaluation is None else [tuning.evaluation]
    return {
        (method, regime): [
            [
                plan_cell(
                    study, method, regime, seed,
                    within=_tuning_folder(study, method, regime) / f"trial-{number}",
                    options={**tuning.options, **setting},
                    seed_fields=fields[method, regime],
                    evaluations=evaluations,
                )
                for seed in tuning.seeds
            ]
            for number, setting in enumerate(study.trials(method))
        ]
        for method, regime in places_of(study)
    }  # fmt: skip


def _tuning_folder(study: Study, method: str, regime: str) -> Path:
    return Path(study.folder) / "tuning" / regime / method


def plan_cells(study: Study, fields: Fields, chosen: Mapping[Place, Mapping[str, Any]]) -> list[CellPlan]:
    """Plan the cells of the final table; a method without a choice has none."""
    return [
        plan_cell(
            study,
            method,
            regime,
            seed,
            within=Path(study.folder) / regime / method,
            options=chosen[method, regime],
            seed_fields=fields[method, regime],
            evaluations=study.evaluations,
        )
        for seed in study.seeds
        for method, regime in places_of(study)
        if (method, regime) in chosen
    ]


def run_study(
    study: Study, fields: Fields, processes: int, tell: Callable[[str], None]
) -> tuple[list[Cell], list[str]]:
    """Run what of a study is not done yet.

    Args:
        study: The study.
        fields: By method and regime, the fields that take the seed.
        processes: Number of cells at the same time.
        tell: Takes a line about what happens.

    Returns:
        The finished cells, and remarks: of failed cells and trials, of chosen settings, of tasks that were used twice.
    """
    trials = plan_trials(study, fields)
    open_trials = [cell for place, of in trials.items() if not _choice_of(study, place) for row in of for cell in row]
    failed = run_cells(open_trials, processes, tell)
    remarks = [f"Failed trial: {cell.folder}." for cell in failed]
    chosen: dict[Place, Mapping[str, Any]] = {place: {} for place in places_of(study)}
    for place, of in trials.items():
        choice = _choice_of(study, place) or _choose(study, place, of)
        if choice is None:
            del chosen[place]
            remarks.append(f"No trial of {' in '.join(filter(None, place))} came to its end, so it has no runs.")
            continue
        chosen[place] = choice["options"]
        scores = ", ".join("failed" if each["score"] is None else f"{each['score']:.3f}" for each in choice["trials"])
        remarks.append(f"Chosen for {' in '.join(filter(None, place))}: {choice['options']} (trials: {scores}).")
    cells = plan_cells(study, fields, chosen)
    lost = run_cells(cells, processes, tell)
    finished = [cell.read() for cell in cells if cell not in lost]
    remarks += [f"Failed: {cell.folder}." for cell in lost]
    return finished, remarks + _tasks_used_twice(study, trials, finished)


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
        raise ValueError(f"{path} was chosen among other settings; give the study another folder, or remove this file")
    return choice


def _choose(study: Study, place: Place, trials: Sequence[Sequence[CellPlan]]) -> dict[str, Any] | None:
    """Choose the setting of the best score, the first of equals, and note it; ``None`` where all trials failed."""
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
        return Setting(tuning.evaluation.split, tuning.evaluation.temperature)
    within = [each.setting for each in cell.evaluations if each.phases is not None]
    if not within:
        raise ValueError("tuning: the fits of the trials validate nothing; give tuning an evaluation")
    return within[-1]


def _tasks_used_twice(
    study: Study, trials: Mapping[Place, Sequence[Sequence[CellPlan]]], finished: Sequence[Cell]
) -> list[str]:
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

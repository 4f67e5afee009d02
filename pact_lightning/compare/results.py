"""Results of finished runs: each task's scores in every evaluation, and what the training took."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pact_lightning.resume.metrics_file import read_rows
from pact_lightning.utils.json_lines import read_json_lines

TaskScores = Mapping[str, float]
"""A metric's mean over the rollouts of each task, by the task's id."""

_EVALUATION = re.compile(r"(?P<split>validation|test|predict)(?:-(?P<phases>\d{4,}))?(?:-rank\d+)?\.jsonl")
_MAX_LINE_MB = 1024


class Setting(NamedTuple):
    """Split and temperature of an evaluation; only evaluations of the same setting are compared.

    Attributes:
        split: ``validation``, ``test`` or ``predict``.
        temperature: Sampling temperature; 0 is greedy.
    """

    split: str
    temperature: float

    def __str__(self) -> str:
        how = f"temperature {self.temperature:g}" if self.temperature else "greedy"
        return f"{self.split}, {how}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The rollouts of one evaluation of one run.

    Attributes:
        setting: What it is of.
        phases: Finished phases of the fit that it was a part of; ``None`` for one after the fit.
        scores: By metric, each task's score.
    """

    setting: Setting
    phases: int | None
    scores: Mapping[str, TaskScores]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a training.

    Attributes:
        tokens: Tokens that the policy sampled in its training rollouts.
        steps: Optimiser steps.
        seconds: Seconds of its phases, without validations.
    """

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One trained run of a comparison.

    Attributes:
        method: The method.
        seed: Its seed; runs of different methods that have the same seed are paired.
        evaluations: Its evaluations.
        cost: What its training took.
        regime: The regime; methods are compared within one.
        facts: ``commit``, ``machine`` and ``command``, where they are known.
    """

    method: str
    seed: int
    evaluations: Sequence[Evaluation]
    cost: Cost = Cost()
    regime: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def last(self, setting: Setting) -> Evaluation | None:
        """Return the scores after training: of an evaluation after the fit, else of the last one within it."""
        found = [evaluation for evaluation in self.evaluations if evaluation.setting == setting]
        after = [evaluation for evaluation in found if evaluation.phases is None]
        return max(after or found, key=_phases, default=None)

    def at(self, setting: Setting, phases: int) -> Evaluation | None:
        """Return the scores of the validation after a number of phases; 0 is before training."""
        return next((each for each in self.evaluations if each.setting == setting and each.phases == phases), None)


def _phases(evaluation: Evaluation) -> int:
    return evaluation.phases or 0


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations whose trajectories are in a run's folder.

    Validations within a phase are left out.

    Args:
        folder: The run's folder, with ``trajectories/``.

    Raises:
        FileNotFoundError: It is not there, or no run's folder.
        ValueError: Its trajectories have no scores.
    """
    check_run_folder(folder)
    records: dict[tuple[Setting, int | None], dict[str, dict[str, list[float]]]] = {}
    for path in sorted((folder / "trajectories").glob("*.jsonl")):
        name = _EVALUATION.fullmatch(path.name)
        if name is None:
            continue
        phases = None if name["phases"] is None else int(name["phases"])
        for _, record in read_json_lines(path, _MAX_LINE_MB):
            if not isinstance(record, dict) or not isinstance(record.get("scores"), dict):
                raise ValueError(
                    f"the rollouts in {path} have no scores, as those of an earlier version; score the run's "
                    f"checkpoint again, with pact-lightning {_COMMANDS[name['split']]}"
                )
            setting = Setting(name["split"], float(record["temperature"]))
            found = records.setdefault((setting, phases), defaultdict(lambda: defaultdict(list)))
            for metric, value in record["scores"].items():
                found[metric][str(record["task_id"])].append(float(value))
    return [Evaluation(*key, _means(scores)) for key, scores in records.items()]


_COMMANDS = {"validation": "validate", "test": "test", "predict": "predict"}


def _means(scores: Mapping[str, Mapping[str, Iterable[float]]]) -> dict[str, dict[str, float]]:
    return {name: {task: fmean(values) for task, values in of.items()} for name, of in scores.items()}


def check_run_folder(folder: Path) -> None:
    """Check that a folder is one of a run.

    Raises:
        FileNotFoundError: It is not there, or has no trajectories.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run {folder}; name the folder that holds its trajectories/")
    if not (folder / "trajectories").is_dir():
        within = sorted(path.parent for path in folder.glob("*/trajectories"))
        hint = f"; name one in it, such as {within[-1]}" if within else ""
        raise FileNotFoundError(f"{folder} is no run's folder: it has no trajectories/{hint}")


def read_cost(folder: Path) -> Cost:
    """Read what a training took from its ``metrics.csv``; nothing where it has none.

    Args:
        folder: The run's folder.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return Cost()
    rows = read_rows(path)
    tokens = sum(_number(row, "rollout/sampled_tokens") for row in rows)
    trained = [int(row["step"]) for row in rows if row.get("train/loss") or row.get("sft/loss")]
    seconds = sum(_number(row, "time/phase") for row in rows)
    return Cost(round(tokens), max(trained, default=-1) + 1, seconds)


def _number(row: Mapping[str, str], name: str) -> float:
    return float(row.get(name) or 0)

"""Results of finished runs: each task's scores in every evaluation, and what the training took."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pact_lightning.utils.csv_rows import read_rows
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import JsonLine, scan_json_lines

TaskScores = Mapping[str, float]
"""A metric's mean over the rollouts of each task, by the task's id."""

_EVALUATION = re.compile(
    r"(?P<split>validation|test|predict)(?:-(?P<phases>\d{4,})(?:-step-\d+)?)?(?:-rank\d+)?\.jsonl"
)
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
        steps: Finished optimiser steps of the fit that it was a part of; ``None`` for one after the fit.
        scores: By metric, each task's score.
    """

    setting: Setting
    steps: int | None
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

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.steps + other.steps, self.seconds + other.seconds)


@dataclass(frozen=True, slots=True)
class Cell:
    """One trained run of a comparison.

    Attributes:
        method: The method.
        seed: Its seed; runs of different methods that have the same seed are paired.
        evaluations: Its evaluations.
        cost: What its training took, that of the run it began from included.
        regime: The regime; methods are compared within one.
        facts: ``commit``, ``machine`` and ``command``, where they are known.
        after: The method from whose run it began.
        cost_before: What the training of that run took.
    """

    method: str
    seed: int
    evaluations: Sequence[Evaluation]
    cost: Cost = Cost()
    regime: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    after: str = ""
    cost_before: Cost = Cost()

    def last(self, setting: Setting) -> Evaluation | None:
        """Return the scores after training: of an evaluation after the fit, else of the last one within it."""
        found = [evaluation for evaluation in self.evaluations if evaluation.setting == setting]
        after = [evaluation for evaluation in found if evaluation.steps is None]
        return max(after or found, key=_steps, default=None)

    def at(self, setting: Setting, steps: int) -> Evaluation | None:
        """Return the scores of the validation after optimiser steps of its own; 0 is before training."""
        return next((each for each in self.evaluations if each.setting == setting and each.steps == steps), None)

    def curve(self, setting: Setting) -> dict[int, Evaluation]:
        """Return the validations within the fit, and one after it, by optimiser steps with those of earlier runs."""
        found = [each for each in self.evaluations if each.setting == setting]
        if all(each.steps is None for each in found):
            return {}
        found.sort(key=lambda each: each.steps is None)  # the one after the fit counts at its end
        steps = [self.cost.steps if each.steps is None else self.cost_before.steps + each.steps for each in found]
        points = dict(zip(steps, found, strict=True))
        return {number: points[number] for number in sorted(points)}


def _steps(evaluation: Evaluation) -> int:
    return evaluation.steps or 0


def evaluation_of(path: Path) -> tuple[str, int | None] | None:
    """Return the split and the finished phases of an evaluation by the name of its file of trajectories.

    Args:
        path: A file of ``trajectories/``.

    Returns:
        The phases are ``None`` for an evaluation after the fit; the whole is ``None`` for any other file.

    >>> evaluation_of(Path("validation-0007-rank1.jsonl")), evaluation_of(Path("phase-0007.jsonl"))
    (('validation', 7), None)
    """
    name = _EVALUATION.fullmatch(path.name)
    if name is None:
        return None
    return name["split"], None if name["phases"] is None else int(name["phases"])


def read_evaluations(folder: Path, damaged: Callable[[TaskFileError], None] | None = None) -> list[Evaluation]:
    """Read the evaluations whose trajectories are in a run's folder.

    Args:
        folder: The run's folder, with ``trajectories/``.
        damaged: Told of each line that cannot be read, which is then left out; without it, the first one is raised.

    Raises:
        FileNotFoundError: It is not there, or no run's folder.
        ValueError: Its trajectories have no scores, those of a fit no step, or a line cannot be read.
    """
    check_run_folder(folder)
    records: dict[tuple[Setting, int | None], dict[str, dict[str, list[float]]]] = {}
    for path in sorted((folder / "trajectories").glob("*.jsonl")):
        found_name = evaluation_of(path)
        if found_name is None:
            continue
        split, phases = found_name
        for line in scan_json_lines(path, _MAX_LINE_MB):
            try:
                if line.error is not None:
                    raise line.error
                key, task, scores = _scored(line, path, split, within_fit=phases is not None)
            except TaskFileError as error:
                if damaged is None:
                    raise
                damaged(error)
                continue
            found = records.setdefault(key, defaultdict(lambda: defaultdict(list)))
            for metric, value in scores.items():
                found[metric][task].append(value)
    return [Evaluation(*key, _means(scores)) for key, scores in records.items()]


def _scored(
    line: JsonLine, path: Path, split: str, *, within_fit: bool
) -> tuple[tuple[Setting, int | None], str, dict[str, float]]:
    """Return setting and steps, the task and the scores of one rollout.

    Raises:
        TaskFileError: A field has another type.
        ValueError: It has no scores, or is of a fit and has no step.
    """
    record = line.value
    if not isinstance(record, dict) or not isinstance(record.get("scores"), dict):
        raise ValueError(
            f"the rollouts in {path} have no scores, as those of an earlier version; score the run's "
            f"checkpoint again, with pact-lightning {_COMMANDS[split]}"
        )
    numbers = {f"scores.{name}": value for name, value in record["scores"].items()}
    numbers |= {"temperature": record.get("temperature")} | ({"step": _step(record, path)} if within_fit else {})
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TaskFileError(path, line.number, f"must be a number, got {type(value).__name__}", name)
    setting = Setting(split, float(record["temperature"]))
    scores = {name: float(value) for name, value in record["scores"].items()}
    return (setting, int(record["step"]) if within_fit else None), str(record.get("task_id")), scores


def _step(record: Mapping[str, Any], path: Path) -> Any:
    if "step" not in record:
        raise ValueError(
            f"the rollouts in {path} do not say after how many optimiser steps they were made, as those of an earlier "
            "version; evaluate the run's checkpoint again, into a folder of its own (--trainer.logger.init_args.name)"
        )
    return record["step"]


_COMMANDS = {"validation": "validate", "test": "test", "predict": "predict"}


def _means(scores: Mapping[str, Mapping[str, Iterable[float]]]) -> dict[str, dict[str, float]]:
    return {name: {task: fmean(values) for task, values in of.items()} for name, of in scores.items()}


def check_run_folder(folder: Path) -> None:
    """Check that a folder is one of a run.

    Raises:
        FileNotFoundError: It is not there, or has no trajectories.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run {folder}; give the folder that contains its trajectories/")
    if not (folder / "trajectories").is_dir():
        within = sorted(path.parent for path in folder.glob("*/trajectories"))
        hint = f"; name one in it, such as {within[-1]}" if within else ""
        raise FileNotFoundError(f"{folder} is not a run's folder: it has no trajectories/{hint}")


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

"""Steps of a cell: the commands that train and evaluate it, and the files by which finished ones are known."""

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pact_lightning.compare.results import Cell, Cost, Evaluation, read_cost, read_evaluations
from pact_lightning.compare.study import EvaluationPlan, Study
from pact_lightning.utils.commit import package_commit
from pact_lightning.utils.files import write_json

RUN = "run"
"""Folder of the fit within a cell's folder."""
_COMMANDS = {"validation": "validate", "test": "test", "predict": "predict"}
_LOGGER = "lightning.pytorch.loggers.CSVLogger"
_START = "model.init_args.policy.start_from"


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of a method's recipe that a cell fills in.

    Attributes:
        seeds: Those that take its seed.
        budget: Those that take the optimiser steps of its fit.
    """

    seeds: tuple[str, ...]
    budget: tuple[str, ...] = ("trainer.max_steps",)


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a cell.

    Attributes:
        name: ``run``, or that of an evaluation: its folder within the cell's.
        cell: The cell's folder.
        arguments: The words behind ``pact-lightning``.
        split: The name of an evaluation in tables; empty for that of its files.
        start: The record of the fit that this one begins from.
    """

    name: str
    cell: Path
    arguments: tuple[str, ...]
    split: str = ""
    start: Path | None = None

    @property
    def command(self) -> str:
        """The command as a user types it."""
        return shlex.join(["pact-lightning", *self.arguments])

    def made_of(self) -> dict[str, Any]:
        """Return what decides its result: the command, the content of its recipes, and the fit that it begins from."""
        recipes = [Path(after) for word, after in zip(self.arguments, self.arguments[1:], strict=False) if word == "-c"]
        made_of: dict[str, Any] = {
            "command": self.command,
            "recipes": {str(path): _digest(path) for path in recipes},
        }
        if self.start is not None:
            made_of["start"] = _digest(self.start) if self.start.is_file() else ""
        return made_of

    @property
    def record(self) -> Path:
        """The file that says that it is done."""
        return self.cell / f"{self.name}.done.json"

    def is_done(self) -> bool:
        """Return whether it has been done already.

        Raises:
            ValueError: It was done by another command, or by recipes that have changed since.
        """
        if not self.record.is_file():
            return False
        record, now = json.loads(self.record.read_text(encoding="utf-8")), self.made_of()
        if any(record[name] != value for name, value in now.items()):
            changed = "by another command"
            if record["command"] == now["command"]:
                same = record["recipes"] == now["recipes"]
                changed = "from a run that was made again" if same else "by a recipe that has changed"
            raise ValueError(
                f"{self.cell / self.name} was made {changed} since; give the study another folder, or remove "
                f"{self.cell} to have it made again"
            )
        return True

    def finish(self, facts: Mapping[str, str], seconds: float) -> None:
        """Note that it is done."""
        write_json(self.record, self.made_of() | {**facts, "seconds": round(seconds, 1)})

    def facts(self) -> dict[str, str]:
        """Return commit, machine and command of a step that is done."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return {name: str(record[name]) for name in ("commit", "machine", "command")}

    def seconds(self) -> float:
        """Return the seconds that it took; it is done."""
        return float(json.loads(self.record.read_text(encoding="utf-8"))["seconds"])


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def facts_of_this_place() -> dict[str, str]:
    """Return the package's commit, else its version, and this machine's name and processor."""
    commit = package_commit() or version("pact-lightning")
    return {"commit": commit, "machine": f"{platform.node()} {platform.machine()}"}


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell to run.

    Attributes:
        method: The method.
        regime: The regime.
        seed: The seed.
        folder: Its folder.
        steps: The fit, unless nothing is trained, then the evaluations.
        start: The cell whose trained policy this one begins from.
    """

    method: str
    regime: str
    seed: int
    folder: Path
    steps: tuple[Step, ...]
    start: "CellPlan | None" = None

    @property
    def is_done(self) -> bool:
        """True if all of its steps are done."""
        return all(step.is_done() for step in self.steps)

    @property
    def seconds(self) -> float:
        """Seconds that its steps took; all of them are done."""
        return sum(step.seconds() for step in self.steps)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that its fit leaves."""
        return self.folder / RUN / "checkpoints" / "last.ckpt"

    def cost(self) -> Cost:
        """Read what its training took, that of the cell it begins from included."""
        own = read_cost(self.folder / RUN)
        return own if self.start is None else self.start.cost() + own

    def read(self) -> Cell:
        """Read what it left; all of its steps are done."""
        evaluations: list[Evaluation] = []
        for step in self.steps:
            for found in read_evaluations(self.folder / step.name):
                shown = found.setting._replace(split=step.split or found.setting.split)
                evaluations.append(replace(found, setting=shown))
        cell = Cell(self.method, self.seed, evaluations, self.cost(), self.regime, self.steps[0].facts())
        if self.start is None:
            return cell
        return replace(cell, after=self.start.method, cost_before=self.start.cost())


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line; what is no text is written as JSON.

    >>> words({"trainer.max_epochs": 2, "model.init_args.sampler": None})
    ['--trainer.max_epochs', '2', '--model.init_args.sampler', 'null']
    """
    pairs = ((f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def recipe_words(
    study: Study, method: str, regime: str, options: Mapping[str, Any], overlays: Sequence[str] = ()
) -> list[str]:
    """Return recipe, overlays and options of a method in a regime; later ones win."""
    parts = (study.regimes[regime], study.methods[method])
    recipes = [study.recipe, *(overlay for part in parts for overlay in part.overlays), *overlays]
    merged = {**parts[0].options, **parts[1].options, **options}
    return [*(word for recipe in recipes for word in ("-c", recipe)), *words(merged)]


def plan_cell(
    study: Study,
    method: str,
    regime: str,
    seed: int,
    *,
    within: Path,
    options: Mapping[str, Any],
    fields: Fields,
    budget: int | None = None,
    start: CellPlan | None = None,
    evaluations: Sequence[EvaluationPlan] = (),
) -> CellPlan:
    """Plan the processes of a cell.

    Args:
        study: The study.
        method: The method.
        regime: The regime.
        seed: The seed.
        within: Where the cell's folder goes.
        options: Chosen settings.
        fields: Fields of the recipe that take seed and budget.
        budget: Optimiser steps of the fit; ``None`` for those of the recipe, 0 for no fit.
        start: The cell whose trained policy this one begins from.
        evaluations: Evaluations after the fit.
    """
    cell = within / f"seed-{seed}"
    own: dict[str, Any] = {**options, **dict.fromkeys(fields.seeds, seed)}
    if budget:
        own |= {"trainer.max_epochs": -1, **dict.fromkeys(fields.budget, budget)}
    if start is not None:
        own[_START] = str(start.checkpoint)

    def of(name: str, more: Mapping[str, Any], overlays: Sequence[str] = ()) -> list[str]:
        place = {
            "trainer.logger": _LOGGER,
            "trainer.logger.init_args.save_dir": str(within),
            "trainer.logger.init_args.name": cell.name,
            "trainer.logger.init_args.version": name,
            "trainer.default_root_dir": str(cell),
        }
        return recipe_words(study, method, regime, {**own, **more, **place}, overlays)

    began = None if start is None else start.steps[0].record
    fit = Step(RUN, cell, ("fit", *of(RUN, {}), "--ckpt_path", "last"), start=began)
    plan = CellPlan(method, regime, seed, cell, () if budget == 0 else (fit,), start)
    trained = ("--ckpt_path", str(plan.checkpoint)) if plan.steps else ()
    after = []
    for evaluation in evaluations:
        how = {
            **evaluation.options,
            "data.init_args.evaluation.temperature": evaluation.temperature,
            "data.init_args.evaluation.samples": evaluation.samples,
        }
        arguments = (_COMMANDS[evaluation.split], *of(evaluation.name, how, evaluation.overlays), *trained)
        after.append(Step(evaluation.name, cell, arguments, evaluation.shown))
    return replace(plan, steps=(*plan.steps, *after))

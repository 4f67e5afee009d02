"""Steps of a cell: the commands that train and evaluate it, and the files by which finished ones are known."""

import hashlib
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pact_lightning.compare.results import Cell, Evaluation, read_cost, read_evaluations
from pact_lightning.compare.study import EvaluationPlan, Study
from pact_lightning.utils.files import write_json

RUN = "run"
"""Folder of the fit within a cell's folder."""
_COMMANDS = {"validation": "validate", "test": "test", "predict": "predict"}
_LOGGER = "lightning.pytorch.loggers.CSVLogger"


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a cell.

    Attributes:
        name: ``run``, or that of an evaluation: its folder within the cell's.
        cell: The cell's folder.
        arguments: The words behind ``pact-lightning``.
    """

    name: str
    cell: Path
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command as a user types it."""
        return shlex.join(["pact-lightning", *self.arguments])

    def made_of(self) -> dict[str, Any]:
        """Return what decides its result: the command, and the content of the recipes that it names."""
        recipes = [Path(after) for word, after in zip(self.arguments, self.arguments[1:], strict=False) if word == "-c"]
        return {"command": self.command, "recipes": {str(path): _digest(path) for path in recipes}}

    @property
    def _record(self) -> Path:
        return self.cell / f"{self.name}.done.json"

    def is_done(self) -> bool:
        """Return whether it has been done already.

        Raises:
            ValueError: It was done by another command, or by recipes that have changed since.
        """
        if not self._record.is_file():
            return False
        record, now = json.loads(self._record.read_text(encoding="utf-8")), self.made_of()
        if any(record[name] != value for name, value in now.items()):
            changed = "a recipe that has changed" if record["command"] == now["command"] else "another command"
            raise ValueError(
                f"{self.cell / self.name} was made by {changed} since; give the study another folder, or remove "
                f"{self.cell} to have it made again"
            )
        return True

    def finish(self, facts: Mapping[str, str], seconds: float) -> None:
        """Note that it is done."""
        write_json(self._record, self.made_of() | {**facts, "seconds": round(seconds, 1)})

    def facts(self) -> dict[str, str]:
        """Return commit, machine and command of a step that is done."""
        record = json.loads(self._record.read_text(encoding="utf-8"))
        return {name: str(record[name]) for name in ("commit", "machine", "command")}


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def facts_of_this_place() -> dict[str, str]:
    """Return the package's commit, else its version, and this machine's name and processor."""
    commit = version("pact-lightning")
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # installed from a wheel: the version tells it
    return {"commit": commit, "machine": f"{platform.node()} {platform.machine()}"}


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell to run.

    Attributes:
        method: The method.
        regime: The regime.
        seed: The seed.
        folder: Its folder.
        steps: The fit, then the evaluations.
    """

    method: str
    regime: str
    seed: int
    folder: Path
    steps: tuple[Step, ...]

    @property
    def is_done(self) -> bool:
        """True if all of its steps are done."""
        return all(step.is_done() for step in self.steps)

    def read(self) -> Cell:
        """Read what it left; all of its steps are done."""
        run, *after = self.steps
        evaluations: list[Evaluation] = []
        for step in (run, *after):
            evaluations += read_evaluations(self.folder / step.name)
        cost = read_cost(self.folder / RUN)
        return Cell(self.method, self.seed, evaluations, cost, self.regime, run.facts())


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line; what is no text is written as JSON.

    >>> words({"trainer.max_epochs": 2, "model.init_args.sampler": None})
    ['--trainer.max_epochs', '2', '--model.init_args.sampler', 'null']
    """
    pairs = ((f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def recipe_words(study: Study, method: str, regime: str, options: Mapping[str, Any]) -> list[str]:
    """Return recipe, overlays and options of a method in a regime; later ones win."""
    parts = (study.regimes[regime], study.methods[method])
    recipes = [study.recipe, *(overlay for part in parts for overlay in part.overlays)]
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
    seed_fields: Sequence[str],
    evaluations: Sequence[EvaluationPlan],
) -> CellPlan:
    """Plan the processes of a cell.

    Args:
        study: The study.
        method: The method.
        regime: The regime.
        seed: The seed.
        within: Where the cell's folder goes.
        options: Chosen settings.
        seed_fields: Fields of the recipe that take the seed.
        evaluations: Evaluations after the fit.
    """
    cell = within / f"seed-{seed}"

    def of(name: str) -> list[str]:
        place = {
            "trainer.logger": _LOGGER,
            "trainer.logger.init_args.save_dir": str(within),
            "trainer.logger.init_args.name": cell.name,
            "trainer.logger.init_args.version": name,
            "trainer.default_root_dir": str(cell),
        }
        return recipe_words(study, method, regime, {**options, **dict.fromkeys(seed_fields, seed), **place})

    steps = [Step(RUN, cell, ("fit", *of(RUN), "--ckpt_path", "last"))]
    for plan in evaluations:
        how = {
            "data.init_args.evaluation.temperature": plan.temperature,
            "data.init_args.evaluation.samples": plan.samples,
        }
        checkpoint = ("--ckpt_path", str(cell / RUN / "checkpoints" / "last.ckpt"))
        steps.append(Step(plan.name, cell, (_COMMANDS[plan.split], *of(plan.name), *words(how), *checkpoint)))
    return CellPlan(method, regime, seed, cell, tuple(steps))

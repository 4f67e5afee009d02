"""Study file: methods, regimes and seeds to run, how their settings are tuned, and how the results are evaluated."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pact_lightning.utils.seeds import python_random

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Variation:
    """Additions of a method or a regime to the recipe.

    Attributes:
        overlays: Recipes behind the study's own.
        options: Fields by dotted path, as on the command line.
        knobs: Of a method: fields to be tuned, each with the values to try.
    """

    overlays: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    knobs: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation after the training, beside the validations within the fit.

    Attributes:
        split: The command that makes it: ``validation``, ``test`` or ``predict``.
        temperature: Sampling temperature; 0 is greedy.
        samples: Rollouts of each task.
    """

    split: Literal["validation", "test", "predict"] = "validation"
    temperature: float = 0.0
    samples: int = 1

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.split}-temperature-{self.temperature:g}"


@dataclass(frozen=True)
class Tuning:
    """The choice of settings: the same number of trials for every method in every regime.

    Attributes:
        trials: Trials of each method. Of a larger grid so many settings are drawn, always the same.
        seeds: Seeds of the trials, none of which the study itself has.
        knobs: Fields to be tuned for every method, such as the learning rate, with the values to try.
        options: Fields that hold for the trials alone: other validation tasks, fewer phases.
        metric: The score, the higher the better; its mean over seeds and tasks decides.
        evaluation: What is scored; by default the last validation within the fit.
    """

    trials: int
    seeds: list[int]
    knobs: dict[str, list[Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    metric: str = "answer_correct"
    evaluation: EvaluationPlan | None = None


@dataclass(frozen=True)
class Study:
    """Methods x regimes x seeds on one recipe.

    Attributes:
        recipe: The recipe that all cells share.
        folder: Where runs and results go.
        methods: What each method adds, by name.
        seeds: Seeds of every method.
        against: The method that the others are compared with.
        regimes: What each regime adds, by name; by default there is one without a name.
        evaluations: Evaluations after the training.
        tuning: How settings are chosen; by default methods are taken as they are.
        metric: The metric of tables and pictures.
        processes: Cells that run at the same time; by default one per core, and one alone on an accelerator.
    """

    recipe: str
    folder: str
    methods: dict[str, Variation]
    seeds: list[int]
    against: str
    regimes: dict[str, Variation] = field(default_factory=lambda: {"": Variation()})
    evaluations: list[EvaluationPlan] = field(default_factory=list)
    tuning: Tuning | None = None
    metric: str = "answer_correct"
    processes: int | None = None

    def __post_init__(self) -> None:
        """Check what needs no recipe.

        Raises:
            ValueError: A field makes no sense.
        """
        if not self.methods or not self.seeds or not self.regimes:
            raise ValueError("a study needs at least one of methods, regimes and seeds each")
        if self.against not in self.methods:
            raise ValueError(f"against: there is no method {self.against!r}; there are {', '.join(self.methods)}")
        for name in [*self.methods, *(name for name in self.regimes if name)]:
            if not _NAME.fullmatch(name) or set(name) == {"."}:
                raise ValueError(f"the name {name!r} is to be a folder's; use letters, digits and _ . + - only")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has a seed twice; each runs once")
        if len({plan.name for plan in self.evaluations}) < len(self.evaluations):
            raise ValueError("evaluations: two are of the same split and temperature; state each once")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: at least one cell has to run at a time, not {self.processes}")
        if self.tuning is None:
            if tuned := [name for name, method in self.methods.items() if method.knobs]:
                raise ValueError(
                    f"methods.{tuned[0]} has knobs, but the study has no tuning; state its trials and seeds"
                )
        else:
            self._check_tuning(self.tuning)

    def _check_tuning(self, tuning: Tuning) -> None:
        shared = sorted(set(tuning.seeds) & set(self.seeds))
        if shared or not tuning.seeds:
            raise ValueError(
                f"tuning.seeds: {tuning.seeds} must be seeds that the final table does not use; {shared or 'none'} "
                "is not enough apart from the study's seeds"
            )
        for name in self.methods:
            grid = settings_of_grid(tuning.knobs | self.methods[name].knobs)
            if not 1 <= tuning.trials <= len(grid):
                raise ValueError(
                    f"tuning.trials: method {name} has {len(grid)} settings for {tuning.trials} trials; every method "
                    "gets the same number, so give its knobs more values or make fewer trials"
                )

    def trials(self, method: str) -> list[dict[str, Any]]:
        """Return the settings that are tried for a method; none without tuning."""
        if self.tuning is None:
            return []
        grid = settings_of_grid(self.tuning.knobs | self.methods[method].knobs)
        if len(grid) == self.tuning.trials:
            return grid
        return python_random("trials", method).sample(grid, self.tuning.trials)


def settings_of_grid(knobs: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the knobs' values.

    >>> settings_of_grid({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]

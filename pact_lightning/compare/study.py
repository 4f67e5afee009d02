"""Study file: methods, regimes and seeds to run, how their settings are tuned, and how the results are evaluated."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pact_lightning.utils.seeds import python_random

_NAME = re.compile(r"[\w.+-]+")
_SPLITS = ("validation", "test", "predict")


@dataclass(frozen=True)
class Variation:
    """Additions of a regime to the recipe.

    Attributes:
        overlays: Recipes behind the study's own.
        options: Fields by dotted path, as on the command line.
    """

    overlays: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(Variation):
    """Additions of a method, and where it begins.

    Attributes:
        knobs: Fields to be tuned, each with the values to try.
        after: Another method, from whose finished run of the same regime and seed this one begins.
        budget: Optimiser steps of its fit, in place of the study's; 0 evaluates the policy as it starts.
    """

    knobs: dict[str, list[Any]] = field(default_factory=dict)
    after: str | None = None
    budget: int | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation after the training, beside the validations within the fit.

    Attributes:
        split: The command that makes it: ``validation``, ``test`` or ``predict``.
        temperature: Sampling temperature; 0 is greedy.
        samples: Rollouts of each task.
        label: Its name in tables and CSV files, in place of ``split``; one with overlays or options needs its own.
        overlays: Recipes behind those of the method.
        options: Fields by dotted path, such as another source of tasks.
    """

    split: Literal["validation", "test", "predict"] = "validation"
    temperature: float = 0.0
    samples: int = 1
    label: str | None = None
    overlays: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.label or self.split

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.shown}-temperature-{self.temperature:g}"

    def __post_init__(self) -> None:
        """Check the label.

        Raises:
            ValueError: It is no folder's name, or an evaluation of its own has none.
        """
        if self.label is not None:
            _check_name(self.label)
        if (self.overlays or self.options) and self.shown in _SPLITS:
            raise ValueError(
                f"evaluations: one of {self.split} has overlays or options of its own; give it a label apart from "
                f"{', '.join(_SPLITS)}, so that it is not taken for the recipe's"
            )


@dataclass(frozen=True)
class Tuning:
    """The choice of settings: the same number of trials for every method.

    Attributes:
        trials: Trials of each method. Of a larger grid so many settings are drawn, always the same.
        seeds: Seeds of the trials, none of which the study itself has.
        knobs: Fields to be tuned for every method, such as the learning rate, with the values to try.
        regime: The regime of all trials, whose choice holds in the others too; by default each regime has its own.
        options: Fields that hold for the trials alone, such as other validation tasks.
        budget: Optimiser steps of a trial's fit; by default those of the method's.
        metric: The score, the higher the better; its mean over seeds and tasks decides.
        evaluation: What is scored; by default the last validation within the fit.
    """

    trials: int
    seeds: list[int]
    knobs: dict[str, list[Any]] = field(default_factory=dict)
    regime: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
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
        budget: Optimiser steps of every fit, whatever a phase or an epoch of it is; by default the recipe's.
        evaluations: Evaluations after the training.
        tuning: How settings are chosen; by default methods are taken as they are.
        metric: The metric of tables and pictures.
        processes: Cells that run at the same time; by default one per core, and one alone on an accelerator.
    """

    recipe: str
    folder: str
    methods: dict[str, Method]
    seeds: list[int]
    against: str
    regimes: dict[str, Variation] = field(default_factory=lambda: {"": Variation()})
    budget: int | None = None
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
            raise ValueError("a study needs at least one method, one regime and one seed")
        if self.against not in self.methods:
            raise ValueError(f"against: there is no method {self.against!r}; there are {', '.join(self.methods)}")
        for name in [*self.methods, *(name for name in self.regimes if name)]:
            _check_name(name)
        for name in self.methods:
            self.chain(name)
        self._check_budgets()
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} lists a seed twice; list each once")
        if len({plan.name for plan in self.evaluations}) < len(self.evaluations):
            raise ValueError("evaluations: two have the same name and temperature; list each once, or give one a label")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: at least one cell must run at a time, not {self.processes}")
        if self.tuning is None:
            if tuned := [name for name, method in self.methods.items() if method.knobs]:
                raise ValueError(
                    f"methods.{tuned[0]} has knobs, but the study has no tuning; add tuning with trials and seeds"
                )
        else:
            self._check_tuning(self.tuning)

    def chain(self, method: str) -> list[str]:
        """Return the methods that a method goes through, the first one first and itself last.

        Raises:
            ValueError: One of them is not there, or they go round in a circle.
        """
        names = [method]
        while (before := self.methods[names[0]].after) is not None:
            if before not in self.methods:
                raise ValueError(f"methods.{names[0]}.after: there is no method {before!r}")
            if before in names:
                raise ValueError(f"methods.{names[0]}.after: {before!r} begins from it too, so neither can start")
            if self.methods[before].budget == 0:
                raise ValueError(f"methods.{names[0]}.after: {before!r} trains nothing; leave `after` out")
            names.insert(0, before)
        return names

    def budget_of(self, method: str) -> int | None:
        """Return the optimiser steps of a method's fit; ``None`` for those of its recipe."""
        own = self.methods[method].budget
        return self.budget if own is None else own

    def _check_budgets(self) -> None:
        _check_budget(self.budget)
        for name, method in self.methods.items():
            if method.budget != 0:
                _check_budget(method.budget)
            elif method.knobs or method.after or not self.evaluations:
                raise ValueError(
                    f"methods.{name}.budget: 0 trains nothing, so it can have no knobs and no 'after', and the study "
                    "needs evaluations"
                )

    def _check_tuning(self, tuning: Tuning) -> None:
        _check_budget(tuning.budget)
        if tuning.regime is not None and tuning.regime not in self.regimes:
            raise ValueError(
                f"tuning.regime: there is no regime {tuning.regime!r}; there are {', '.join(self.regimes)}"
            )
        shared = sorted(set(tuning.seeds) & set(self.seeds))
        if shared or not tuning.seeds:
            raise ValueError(
                f"tuning.seeds: {tuning.seeds} must be seeds that the final table does not use; {shared or 'none'} "
                "is not enough apart from the study's seeds"
            )
        for name in self.methods:
            grid = settings_of_grid(tuning.knobs | self.methods[name].knobs)
            if self.methods[name].budget != 0 and not 1 <= tuning.trials <= len(grid):
                raise ValueError(
                    f"tuning.trials: method {name} has {len(grid)} settings for {tuning.trials} trials; every method "
                    "gets the same number, so give its knobs more values or make fewer trials"
                )

    def trials(self, method: str) -> list[dict[str, Any]]:
        """Return the settings that are tried for a method; none without tuning or training."""
        if self.tuning is None or self.methods[method].budget == 0:
            return []
        grid = settings_of_grid(self.tuning.knobs | self.methods[method].knobs)
        if len(grid) == self.tuning.trials:
            return grid
        return python_random("trials", method).sample(grid, self.tuning.trials)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or set(name) == {"."}:
        raise ValueError(f"the name {name!r} is used for a folder; use letters, digits and _ . + - only")


def _check_budget(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"budget: a fit makes at least one optimiser step, not {steps}")


def settings_of_grid(knobs: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the knobs' values.

    >>> settings_of_grid({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]

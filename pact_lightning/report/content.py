"""Content of a page: all that is shown of some runs as one structure, read anew only where files have changed."""

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pact_lightning.compare.results import Cell, Cost, Evaluation, check_run_folder, read_cost, read_evaluations
from pact_lightning.compare.runs import NamedRun, name_runs
from pact_lightning.report.charts import charts_of, read_columns
from pact_lightning.report.experts import experts_of, recipe_experts
from pact_lightning.report.heat import heat_files, read_heat
from pact_lightning.report.rollouts import Json, RolloutFile, allot, count_lines, files_in_order, read_file
from pact_lightning.report.scores import headline, score_tables, success_charts
from pact_lightning.report.setup import differences, facts_of, read_config
from pact_lightning.types.task import Task

MOST_ROLLOUTS = 5000
"""Trajectories in a page unless another number is asked for [D]."""
_TOLD = 20
"""Problems of a run that are listed."""

Made = TypeVar("Made")
Signature = tuple[tuple[str, int, int], ...]


class Block(NamedTuple):
    """Part of the content that is read when it is needed.

    Attributes:
        key: Its name, with a mark of the files it was made of, so that a changed one has another name.
        value: Bodies of trajectories, in the order of their rows, or expert traces by task.
    """

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Content:
    """Content of a page.

    Attributes:
        index: Figures, tables and the rows of trajectories, as a JSON value.
        blocks: The rest, by key.
        version: Mark of all of it.
    """

    index: Json
    blocks: Mapping[str, Block]
    version: str


@dataclass(frozen=True, slots=True)
class _Run:
    """Findings about one run."""

    cell: Cell
    columns: Mapping[str, Any]
    config: Json
    facts: Json
    rows: Sequence[Json]
    blocks: Sequence[Block]


class Reader:
    """Reader of some runs; asked again, it reads only files that have changed.

    Args:
        named: The runs, each as ``FOLDER`` or ``NAME=FOLDER``.
        most: Most trajectories of a page, shared among its files; tasks are not torn.
        tasks: Tasks whose traces are shown, instead of those that the runs' recipes name.

    Raises:
        FileNotFoundError: A folder is not there, or no run's.
        ValueError: A run is named twice.
    """

    def __init__(self, named: Sequence[str], most: int = MOST_ROLLOUTS, tasks: Sequence[Task] | None = None) -> None:
        if most < 1:
            raise ValueError(f"the number of rollouts in a page must be at least 1, not {most}")
        self.runs = name_runs(named)
        for run in self.runs:
            if not any((run.folder / name).is_file() for name in ("metrics.csv", "config.yaml")):
                check_run_folder(run.folder)
        self.most = most
        self.tasks = tasks
        self._known: dict[Hashable, tuple[Hashable, Any]] = {}

    def read(self) -> Content:
        """Read what the runs have left so far."""
        state = tuple(_signature(sorted(run.folder.glob("*.*")) + _trajectories(run.folder)) for run in self.runs)
        return self._kept("content", state, self._read)

    def _read(self) -> Content:
        files = [path for run in self.runs for path in files_in_order(run.folder)]
        counts = [self._once(("lines", path), (path,), partial(count_lines, path)) for path in files]
        shares = dict(zip(files, allot(counts, self.most), strict=True))
        runs = [self._run(number, run, shares) for number, run in enumerate(self.runs)]
        cells = [run.cell for run in runs]
        evaluations = tuple(_signature(_trajectories(run.folder)) for run in self.runs)
        success, tables = self._kept("scores", evaluations, lambda: (success_charts(cells), score_tables(cells)))
        index = {
            "runs": [run.facts for run in runs],
            "charts": success + charts_of([run.columns for run in runs]),
            "scores": tables,
            "differences": differences([run.config for run in runs]) if len(runs) > 1 else [],
            "rollouts": [row for run in runs for row in run.rows],
        }
        version = hashlib.blake2b(json.dumps(index).encode(), digest_size=8).hexdigest()
        return Content(index, {block.key: block for run in runs for block in run.blocks}, version)

    def _run(self, number: int, run: NamedRun, shares: Mapping[Path, int]) -> _Run:
        notes: list[str] = []
        config, told = self._kept(("config", number), _signature(sorted(run.folder.glob("config*.yaml"))),
                                  lambda: read_config(run.folder))  # fmt: skip
        notes += told
        columns, told = self._once(("metrics", number), (run.folder / "metrics.csv",), lambda: _columns(run.folder))
        notes += told
        (evaluations, cost, told), score = self._kept(
            ("evaluations", number),
            _signature([*_trajectories(run.folder), run.folder / "metrics.csv"]),
            lambda: _scored(run),
        )
        notes += told
        rows, blocks, count, told = self._rollouts(number, run, shares)
        notes += told
        experts, told = self._experts(number, config, {row["task"] for row in rows})
        notes += told
        if experts.value:
            blocks.append(experts)
        facts = {
            "name": run.name,
            "seed": run.seed,
            "folder": run.folder.resolve().name,
            "facts": facts_of(config),
            "tokens": cost.tokens,
            "steps": cost.steps,
            "seconds": round(cost.seconds, 1) if math.isfinite(cost.seconds) else 0.0,
            "score": score,
            "levels": {str(int(phase)): level for phase, level in columns.get("anneal/level", [])},
            "experts": experts.key if experts.value else None,
            "traced": sorted(experts.value),
            "shown": len(rows),
            "count": count,
            "notes": notes[:_TOLD] + ([f"and {len(notes) - _TOLD} more"] if len(notes) > _TOLD else []),
        }
        return _Run(Cell(run.name, run.seed, evaluations, cost), columns, config, facts, rows, blocks)

    def _rollouts(
        self, number: int, run: NamedRun, shares: Mapping[Path, int]
    ) -> tuple[list[Json], list[Block], int, list[str]]:
        heat: dict[tuple[str, str, int], Json] = {}
        notes: list[str] = []
        measured = heat_files(run.folder)
        for path in measured:
            tokens, told = self._once(("heat", path), (path,), partial(read_heat, path))
            heat |= tokens
            notes += told
        rows: list[Json] = []
        blocks: list[Block] = []
        count = 0
        for path in (path for path in shares if path.parent.parent == run.folder):
            most = shares[path]
            signature = _signature([path])
            found: RolloutFile = self._kept(("rollouts", path), (signature, most), partial(read_file, path, most))
            count += found.count
            notes += found.problems
            key = _key(f"{number}-{found.name}", signature + _signature(measured), most)
            bodies = []
            for at, (row, body) in enumerate(zip(found.rows, found.bodies, strict=True)):
                own = heat.get((row["set"], row["task"], row["sample"]))
                rows.append({**row, "run": number, "file": found.name, "block": key, "at": at, "heat": own is not None})
                bodies.append(body if own is None else {**body, "heat": own})
            blocks.append(Block(key, bodies))
        return rows, blocks, count, notes

    def _experts(self, number: int, config: Json, wanted: set[str]) -> tuple[Block, list[str]]:
        def make() -> tuple[dict[str, Json], list[str]]:
            if self.tasks is not None:
                return experts_of(self.tasks, wanted), []
            return recipe_experts(config, wanted)

        mark = hashlib.blake2b(json.dumps(sorted(wanted)).encode(), digest_size=8).hexdigest()
        found, notes = self._kept(("experts", number), mark, make)
        return Block(_key(f"{number}-experts", (), mark), found), notes

    def _once(self, name: Hashable, files: Sequence[Path], make: Callable[[], Made]) -> Made:
        return self._kept(name, _signature(files), make)

    def _kept(self, name: Hashable, signature: Hashable, make: Callable[[], Made]) -> Made:
        known = self._known.get(name)
        if known is None or known[0] != signature:
            known = self._known[name] = (signature, make())
        value: Made = known[1]
        return value


def _trajectories(folder: Path) -> list[Path]:
    return sorted((folder / "trajectories").glob("*.jsonl"))


def _signature(files: Sequence[Path]) -> Signature:
    found = []
    for path in files:
        if path.exists():
            state = path.stat()
            found.append((str(path), state.st_mtime_ns, state.st_size))
    return tuple(found)


def _key(name: str, signature: Signature, *further: Any) -> str:
    mark = hashlib.blake2b(repr((signature, further)).encode(), digest_size=6).hexdigest()
    return f"{name}.{mark}"


def _columns(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}, ["there is no metrics.csv, so there are no curves of training"]
    try:
        return read_columns(path), []
    except (OSError, ValueError) as error:
        return {}, [f"metrics.csv cannot be read: {error}"]


def _scored(run: NamedRun) -> tuple[tuple[list[Evaluation], Cost, list[str]], Json | None]:
    found = _evaluations(run.folder)
    return found, headline(Cell(run.name, run.seed, found[0]))


def _evaluations(folder: Path) -> tuple[list[Evaluation], Cost, list[str]]:
    notes: list[str] = []
    cost, evaluations = Cost(), []
    with suppress(OSError, ValueError):  # told by the curves
        cost = read_cost(folder)
    if (folder / "trajectories").is_dir():
        try:
            evaluations = read_evaluations(folder, damaged=lambda _: None)  # told by the trajectories
        except (OSError, ValueError) as error:
            notes.append(f"the scores are left out: {error}")
    return evaluations, cost, notes

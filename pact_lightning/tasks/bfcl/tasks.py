"""BFCL's multi-turn tasks: several user turns each, with ground-truth calls as reference and expert trace."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pact_lightning.tasks.bfcl.environment import Scenario, SimulatedAPIs
from pact_lightning.tasks.bfcl.package import data_folder, tool_schemas
from pact_lightning.tasks.bfcl.rows import CATEGORIES, BFCLRow, Category, read_rows
from pact_lightning.tasks.record import check_task
from pact_lightning.traces.segmentation import turn_pattern
from pact_lightning.types.prompt import EnvironmentSpec, Message, PromptView, ToolSchema, UserTurn
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, TaskFileError

TraceTurns = Literal["user_turn", "call"]
"""Calls of an expert turn: all calls of a user turn, or one."""
DONE = "Done."
"""The expert's reply to a request that it has met [D]; BFCL has no words for it, and scores none."""
CANNOT = {
    "miss_func": "None of the functions that I have does this.",
    "miss_param": "I need to know more before I can do this.",
}
"""The expert's reply where the ground truth calls nothing, by category [D]."""


SYSTEM_PROMPT = (
    "You act for a user by calling functions. Call what the current request needs, and use what the functions return. "
    "When the request is done, or cannot be done with the functions and facts that you have, reply in one short "
    "sentence without a call; the user then goes on."
)
ENVIRONMENT = "pact_lightning.BFCLEnvironment"

Subset = Literal["all", "train", "validation", "test"]


class BFCLTasks:
    """The multi-turn tasks of the Berkeley Function Calling Leaderboard, read from the package ``bfcl-eval``.

    Each of the four categories holds the same 200 scenarios. A task's id is the row's, its ``kind`` the category, and
    its metadata hold what the official check needs (``category``, ``scenario``, ``ground_truth``: calls per user turn).

    Args:
        category: ``base``, ``miss_func`` (a function is held back until a later user turn), ``miss_param`` (an
            argument is missing until then), ``long_context``, or a list of them.
        subset: One side of a split by a hash of the scenario's number, so that no scenario is on two sides, whatever
            the category; ``all`` for every scenario. [D]
        train_fraction: Share of scenarios on the ``train`` side.
        validation_fraction: Share on the ``validation`` side; the rest is ``test``.
        limit: Load at most this many tasks, after all other choices, several categories in turns; ``None`` for all.
        distractors: Keep only the functions that the ground truth calls, and this many of the others, the first ones;
            ``None`` for all. For small models and short contexts: results are no longer BFCL's. [D]
        trace_turns: ``user_turn`` makes one expert turn of all ground-truth calls of a user turn; ``call`` makes one
            of every call, so that each stands behind the responses that its arguments come from. [D]
        system_prompt: A system message in front; ``None`` or empty for none. Not BFCL's own. [D]
        folder: A folder with BFCL's data files; ``None`` for those of the installed package.

    Raises:
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        category: Category | list[Category] = "base",
        *,
        subset: Subset = "all",
        train_fraction: float = 0.6,
        validation_fraction: float = 0.2,
        limit: int | None = None,
        distractors: int | None = None,
        trace_turns: TraceTurns = "user_turn",
        system_prompt: str | None = SYSTEM_PROMPT,
        folder: str | Path | None = None,
    ) -> None:
        self.categories: tuple[Category, ...] = (category,) if isinstance(category, str) else tuple(category)
        wrong = [name for name in self.categories if name not in CATEGORIES]
        if wrong or not self.categories or len(set(self.categories)) < len(self.categories):
            known = ", ".join(CATEGORIES)
            raise ValueError(f"category must be one or several of {known}, each once; got {category!r}")
        if subset not in get_args(Subset):
            raise ValueError(f"subset must be one of {', '.join(get_args(Subset))}, got {subset!r}")
        if min(train_fraction, validation_fraction) < 0 or train_fraction + validation_fraction > 1:
            raise ValueError("train_fraction and validation_fraction must be at least 0 and add up to at most 1")
        if distractors is not None and distractors < 0:
            raise ValueError(f"distractors is a number of functions, at least 0, or null for all; got {distractors}")
        self.subset: Subset = subset
        self.train_fraction = train_fraction
        self.validation_fraction = validation_fraction
        self.limit = limit
        self.distractors = distractors
        self.trace_turns: TraceTurns = trace_turns
        self.system_prompt = system_prompt
        self.folder = None if folder is None else Path(folder)

    def load(self) -> Sequence[Task]:
        """Read and check the chosen rows: by scenario in the files' order, and within one by category.

        Raises:
            ImportError: ``bfcl-eval`` is not installed.
            FileNotFoundError: The folder lacks a file.
            TaskFileError: A row, or its ground truth, is not well formed.
        """
        folder = self.folder or data_folder()
        numbered = [
            (place, number, path, line, row)
            for number, category in enumerate(self.categories)
            for place, (path, line, row) in enumerate(read_rows(folder, category))
            if self.subset in ("all", side_of(row.scenario, self.train_fraction, self.validation_fraction))
        ]
        numbered.sort(key=lambda entry: entry[:2])
        tasks = []
        for _, _, path, line, row in numbered[: self.limit]:
            try:
                tasks.append(self._task(row))
            except TaskFieldError as error:
                raise TaskFileError(path, line, error.problem, error.field) from error
        return tasks

    def _task(self, row: BFCLRow) -> Task:
        first, *later = self._tools(row)
        system: list[Message] = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        environment = {
            "involved_classes": list(row.classes),
            "initial_config": dict(row.initial_config),
            "long_context": row.category == "long_context",
        }
        task = Task(
            prompt=PromptView(
                id=row.id,
                messages=(*system, {"role": "user", "content": row.turns[0]}),
                tools=first,
                environment=EnvironmentSpec(ENVIRONMENT, environment),
                follow_ups=tuple(UserTurn(text, tools) for text, tools in zip(row.turns[1:], later, strict=True)),
            ),
            reference=Reference(calls=tuple(call for calls in row.ground_truth for call in calls)),
            trace=ground_truth_trace(row.ground_truth, environment, row.category, self.trace_turns),
            kind=row.category,
            metadata={
                "category": row.category,
                "scenario": row.scenario,
                "ground_truth": [[dict(call) for call in calls] for calls in row.ground_truth],
            },
        )
        check_task(task)
        return task

    def _tools(self, row: BFCLRow) -> list[tuple[ToolSchema, ...]]:
        """Return the tools that come with each user turn; all that are not held back come with the first."""
        held_back = {name: turn for turn, names in row.released.items() for name in names}
        needed = {call["name"] for calls in row.ground_truth for call in calls} | set(held_back)
        places: list[list[ToolSchema]] = [[] for _ in row.turns]
        others = 0
        for tool in tool_schemas(row.classes):
            name = str(tool["function"]["name"])
            others += name not in needed
            if name in needed or self.distractors is None or others <= self.distractors:
                places[held_back.get(name, 0)].append(tool)
        return [tuple(place) for place in places]


def ground_truth_trace(
    ground_truth: Sequence[Sequence[ToolCall]],
    environment: Mapping[str, Any],
    category: str,
    turns_of: TraceTurns,
) -> ExpertTrace | None:
    """Run the ground truth and return it as a trace.

    Args:
        ground_truth: Calls per user turn.
        environment: ``involved_classes``, ``initial_config`` and ``long_context`` of the task's environment.
        category: BFCL's category; it decides the reply where nothing is called.
        turns_of: Calls of an expert turn, see :data:`TraceTurns`.

    Returns:
        The trace: no reasoning; a reply after every user turn but the last, whose reply is the ``final`` turn.
        ``None`` where nothing is called at all.

    Raises:
        TaskFieldError: An API cannot load its initial state.
    """
    if not any(ground_truth):
        return None
    try:
        apis = SimulatedAPIs(Scenario(**environment))
    except ValueError as error:
        raise TaskFieldError("initial_config", str(error)) from error
    turns: list[ExpertTurn] = []
    failed = False
    for calls in ground_truth:
        for together in [calls] if calls and turns_of == "user_turn" else [[call] for call in calls]:
            results = [apis.call(call["name"], call["arguments"]) for call in together]
            pattern = turn_pattern(len(turns), failed, (), is_final=False)
            turns.append(ExpertTurn((), tuple(together), tuple(result.text for result in results), pattern))
            failed = any(result.error for result in results)
        turns.append(ExpertTurn((), reply=DONE if calls else CANNOT.get(category, DONE)))
    last = turns.pop()
    final = ExpertTurn((), pattern=TurnPattern.FINAL_ANSWER_TURN, answer=last.reply or "")
    return ExpertTrace(tuple(turns), final, source="BFCL's ground truth, run")


def side_of(scenario: int, train_fraction: float, validation_fraction: float) -> Subset:
    """Return the side of the split that a scenario is on, by the SHA-256 of its number as a number in ``[0, 1)``."""
    digest = hashlib.sha256(f"bfcl scenario {scenario}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < train_fraction:
        return "train"
    return "validation" if place < train_fraction + validation_fraction else "test"

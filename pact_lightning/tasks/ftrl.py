"""FTRL's rows (arXiv 2508.08791) as tasks, with known calls joined as reference and expert trace."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.tasks.checks import TaskFieldError, TaskFileError, check_task, typed
from pact_lightning.tasks.jsonl import read_json_lines
from pact_lightning.tasks.prompt import EnvironmentSpec, Message, PromptView, as_messages
from pact_lightning.tasks.schema import Reference, SubAnswer, Task
from pact_lightning.traces.from_calls import trace_from_calls
from pact_lightning.traces.schema import ExpertTrace, ExpertTurn, TurnPattern

SYSTEM_PROMPT = (
    "Find what you need with the tools. Once you know the answer, reply without a tool call and put nothing but the "
    "answer between <answer> and </answer>."
)
ENVIRONMENT = "pact_lightning.environments.code_tools.CodeToolEnvironment"

Subset = Literal["all", "train", "validation"]


@dataclass(frozen=True, slots=True)
class _KnownCalls:
    """One complete line of a reference-calls file."""

    line: int
    question: str
    calls: tuple[ToolCall, ...]
    observations: tuple[str, ...]


class FTRLTasks:
    """Tasks from a file of FTRL rows, ``.jsonl`` or ``.jsonl.gz``.

    Of a row, ``messages, tools, codes, unsolved_set`` are needed and ``answer, data_source, split, solve_rate,
    ground_truth`` are used where they are there; other fields are let be. A row's id is ``{name}-{row number}``, rows
    counted from 0. Tools run in :class:`pact_lightning.environments.code_tools.CodeToolEnvironment`.

    Args:
        path: The file.
        reference_calls: A file of calls that solve the rows, a JSON object a line: ``index`` (the row number),
            ``calls`` [{``name``, ``arguments``, ``observation``}], ``unsolved`` (a line with any is left out) and,
            optionally, ``question`` (must stand in the row's last message). They become the reference and, with their
            observations, an expert trace without reasoning, one turn per call. Without them, a row's own
            ``ground_truth`` [{``name``, ``parameters``}] (MatchTIR's) becomes the reference, and there is no trace.
        indices: Only these row numbers; ``None`` for all.
        subset: ``train`` or ``validation`` keeps one side of a split by a hash of the row number, which does not
            depend on the file's length or order of reading.
        train_fraction: Share of rows on the ``train`` side, in ``[0, 1]``.
        split: Only rows with this ``split``, for example ``test``; ``None`` for all.
        limit: Load at most this many tasks, after all other choices.
        distractors: Keep only the tools that the reference needs, and this many of the others, the first ones of the
            row; ``None`` for all. For small models and short contexts: the tasks get easier, so results are no
            longer comparable with FTRL's. [D]
        system_prompt: A system message put before the row's own messages; ``None`` or empty for none. [D]
        name: What the ids start with; give each file its own where several are used together.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        reference_calls: str | Path | None = None,
        indices: list[int] | None = None,
        subset: Subset = "all",
        train_fraction: float = 0.8,
        split: str | None = None,
        limit: int | None = None,
        distractors: int | None = None,
        system_prompt: str | None = SYSTEM_PROMPT,
        name: str = "ftrl",
    ) -> None:
        if subset not in ("all", "train", "validation"):
            raise ValueError(f"subset must be all, train or validation, got {subset!r}")
        if not 0 <= train_fraction <= 1:
            raise ValueError(f"train_fraction must be between 0 and 1, got {train_fraction}")
        if distractors is not None and distractors < 0:
            raise ValueError(f"distractors is a number of tools, at least 0, or null for all; got {distractors}")
        self.path = Path(path)
        self.reference_calls = None if reference_calls is None else Path(reference_calls)
        self.indices = None if indices is None else frozenset(indices)
        self.subset: Subset = subset
        self.train_fraction = train_fraction
        self.split = split
        self.limit = limit
        self.distractors = distractors
        self.system_prompt = system_prompt
        self.name = name

    def load(self) -> Sequence[Task]:
        """Reads and checks the chosen rows, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A row or a line of known calls is not well formed, or the known calls are of another file.
            ValueError: ``indices`` names a row that the file does not have.
        """
        known = {} if self.reference_calls is None else _read_known_calls(self.reference_calls)
        tasks: list[Task] = []
        rows = 0
        for index, (line, row) in enumerate(read_json_lines(self.path)):
            rows = index + 1
            if self._wanted(index, row) and (self.limit is None or len(tasks) < self.limit):
                try:
                    tasks.append(self._task(index, row, known.get(index)))
                except TaskFieldError as error:
                    raise TaskFileError(self.path, line, error.problem, error.field) from error
        for source, asked in ((self.reference_calls, known), ("indices", self.indices or ())):
            absent = [index for index in asked if not 0 <= index < rows]
            if absent:
                raise ValueError(f"{source} names row {absent[0]}, but {self.path} has {rows} rows, counted from 0")
        return tasks

    def _wanted(self, index: int, row: Any) -> bool:
        if self.indices is not None and index not in self.indices:
            return False
        if self.split is not None and isinstance(row, dict) and row.get("split") != self.split:
            return False
        return self.subset == "all" or (self.subset == "train") == in_train(index, self.train_fraction)

    def _task(self, index: int, row: Any, known: _KnownCalls | None) -> Task:
        typed(row, dict, "(the line)")
        messages: list[Message] = typed(_needed(row, "messages"), list, "messages")
        if self.system_prompt:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        tools = _decoded(row, "tools", list)
        codes = _decoded(row, "codes", dict)
        for name, code in codes.items():
            typed(code, str, f"codes.{name}")
        answer = row.get("answer")
        calls = known.calls if known is not None else _ground_truth(row)
        sub_answers = _sub_answers(_decoded(row, "unsolved_set", dict))
        if self.distractors is not None:
            needed = {call["name"] for call in calls} | {sub_answer.tool for sub_answer in sub_answers}
            tools = _with_distractors(tools, needed, self.distractors)
        task = Task(
            prompt=PromptView(
                id=f"{self.name}-{index}",
                messages=as_messages([typed(message, dict, "messages") for message in messages]),
                tools=tuple(typed(tool, dict, "tools") for tool in tools),
                environment=EnvironmentSpec(ENVIRONMENT, {"codes": codes, "tools": tools}),
            ),
            reference=Reference(
                answer=None if answer is None else typed(answer, str, "answer"),
                calls=calls,
                sub_answers=sub_answers,
            ),
            trace=None if known is None else _trace(known, answer),
            kind=typed(row.get("data_source", ""), str, "data_source"),
            metadata={"index": index, **{key: row[key] for key in ("split", "solve_rate") if key in row}},
        )
        check_task(task)
        without = sorted(set(task.prompt.tool_names) - set(codes))
        if without:
            raise TaskFieldError("codes", f"has no source for the tools {', '.join(without)}")
        if known is not None and known.question not in task.prompt.messages[-1]["content"]:
            problem = f"line {known.line} of {self.reference_calls} is about another question: {known.question!r}"
            raise TaskFieldError("messages", problem)
        return task


def in_train(index: int, train_fraction: float) -> bool:
    """Whether row ``index`` is on the ``train`` side: its SHA-256 as a number in ``[0, 1)`` is below the share."""
    digest = hashlib.sha256(f"ftrl row {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < train_fraction


def _with_distractors(tools: list[Any], needed: set[str], distractors: int) -> list[Any]:
    """The needed tools and the first others, in the row's order."""
    kept = []
    for index, tool in enumerate(tools):
        function = typed(typed(tool, dict, f"tools[{index}]").get("function"), dict, f"tools[{index}].function")
        is_needed = function.get("name") in needed
        if is_needed or distractors > 0:
            kept.append(tool)
            distractors -= not is_needed
    return kept


def _needed(row: dict[str, Any], field: str) -> Any:
    if field not in row:
        raise TaskFieldError(field, "is missing")
    return row[field]


def _decoded(row: dict[str, Any], field: str, kind: type) -> Any:
    """A field that upstream holds as a JSON string; the JSON value itself is taken as well."""
    value = _needed(row, field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise TaskFieldError(field, f"is not valid JSON: {error.msg} at character {error.pos}") from error
    return typed(value, kind, field)


def _sub_answers(unsolved_set: dict[str, Any]) -> tuple[SubAnswer, ...]:
    return tuple(
        SubAnswer(tool, typed(answer, str, f"unsolved_set.{tool}"))
        for tool, answers in unsolved_set.items()
        for answer in typed(answers, list, f"unsolved_set.{tool}")
    )


def _ground_truth(row: dict[str, Any]) -> tuple[ToolCall, ...]:
    if row.get("ground_truth") is None:
        return ()
    calls = []
    for index, entry in enumerate(_decoded(row, "ground_truth", list)):
        where = f"ground_truth[{index}]"
        typed(entry, dict, where)
        name = typed(entry.get("name"), str, f"{where}.name")
        calls.append(ToolCall(name=name, arguments=typed(entry.get("parameters"), dict, f"{where}.parameters")))
    return tuple(calls)


def _trace(known: _KnownCalls, answer: str | None) -> ExpertTrace:
    trace = trace_from_calls(known.calls, known.observations, source="known calls, re-executed")
    if answer is None:
        return trace
    text = f"<answer>{answer}</answer>"
    return replace(trace, final=ExpertTurn(chunks=(), pattern=TurnPattern.FINAL_ANSWER_TURN, answer=text))


def _read_known_calls(path: Path) -> dict[int, _KnownCalls]:
    """The complete lines, by row number.

    Raises:
        TaskFileError: A line is not well formed or repeats a row number.
    """
    known: dict[int, _KnownCalls] = {}
    for line, record in read_json_lines(path):
        try:
            typed(record, dict, "(the line)")
            index = typed(_needed(record, "index"), int, "index")
            if index in known:
                raise TaskFieldError("index", f"row {index} is already on line {known[index].line}")
            calls = typed(_needed(record, "calls"), list, "calls")
            if typed(_needed(record, "unsolved"), list, "unsolved") or not calls:
                continue
            known[index] = _KnownCalls(
                line,
                typed(record.get("question", ""), str, "question"),
                tuple(_known_call(call, f"calls[{number}]") for number, call in enumerate(calls)),
                tuple(typed(call.get("observation"), str, f"calls[{n}].observation") for n, call in enumerate(calls)),
            )
        except TaskFieldError as error:
            raise TaskFileError(path, line, error.problem, error.field) from error
    return known


def _known_call(value: Any, where: str) -> ToolCall:
    typed(value, dict, where)
    return ToolCall(
        name=typed(value.get("name"), str, f"{where}.name"),
        arguments=typed(value.get("arguments"), dict, f"{where}.arguments"),
    )

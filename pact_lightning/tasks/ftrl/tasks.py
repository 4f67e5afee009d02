"""FTRL's rows (arXiv 2508.08791) as tasks, with known calls joined as reference and expert trace.

Run as a command, the module makes the file of known calls by replay in the sandbox. It is for rows that say which calls
solve them but not what these return, such as MatchTIR's training set::

    python -m pact_lightning.tasks.ftrl.tasks data/ftrl/train.jsonl data/ftrl/reference_calls.jsonl
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pact_lightning.credit.answers import open_answers
from pact_lightning.tasks.ftrl.row import SYSTEM_PROMPT, KnownCalls, ftrl_task
from pact_lightning.tasks.jsonl import Scanned, scan_records, tasks_of
from pact_lightning.traces.replay import EnvironmentFailedError, replay_calls
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.errors import TaskFieldError, TaskFileError, needed, typed
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.json_lines import MAX_LINE_MB, JsonLine, read_json_lines, scan_json_lines

Subset = Literal["all", "train", "validation"]


class FTRLTasks:
    """Tasks from a file of FTRL rows, ``.jsonl`` or ``.jsonl.gz``.

    Of a row, ``messages, tools, codes, unsolved_set`` are needed and ``answer, data_source, split, solve_rate,
    ground_truth`` are used where they are there; other fields are ignored. A row's id is ``{name}-{row number}``, rows
    counted from 0. Tools run in :class:`pact_lightning.CodeToolEnvironment`.

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
        limit: Load at most this many tasks, after all other choices; ``None`` for all.
        distractors: Keep only the tools that the reference needs, and this many of the others, the first ones of the
            row; ``None`` for all. For small models and short contexts: the tasks get easier, so results are no
            longer comparable with FTRL's. [D]
        system_prompt: A system message put before the row's own messages; ``None`` or empty for none. [D]
        name: Start of the ids; give each file its own where several are used together.
        max_line_mb: Longest line in MiB.
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
        max_line_mb: int = MAX_LINE_MB,
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
        self.max_line_mb = max_line_mb

    def load(self) -> Sequence[Task]:
        """Read and check the chosen rows, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A row or a line of known calls is not well formed, or the known calls are of another file.
            ValueError: ``indices`` names a row that the file does not have.
        """
        return list(tasks_of(self.scan()))

    def scan(self) -> Iterator[Scanned]:
        """Yield every chosen row as a task or its mistake.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A line of known calls is not well formed.
            ValueError: ``indices`` or the known calls name a row that the file does not have.
        """
        known = {} if self.reference_calls is None else _read_known_calls(self.reference_calls, self.max_line_mb)
        rows = made = 0

        def counted() -> Iterator[JsonLine]:
            nonlocal rows
            for line in scan_json_lines(self.path, self.max_line_mb):
                rows += 1
                yield line

        def read(index: int, row: Any) -> Task | None:
            nonlocal made
            if not self._wanted(index, row) or (self.limit is not None and made >= self.limit):
                return None
            task = self._task(index, row, known)
            made += 1
            return task

        yield from scan_records(self.path, counted(), read)
        for source, asked in ((self.reference_calls, known), ("indices", self.indices or ())):
            absent = [index for index in asked if not 0 <= index < rows]
            if absent:
                raise ValueError(f"{source} names row {absent[0]}, but {self.path} has {rows} rows, counted from 0")

    def _wanted(self, index: int, row: Any) -> bool:
        if self.indices is not None and index not in self.indices:
            return False
        if self.split is not None and isinstance(row, dict) and row.get("split") != self.split:
            return False
        return self.subset == "all" or (self.subset == "train") == in_train(index, self.train_fraction)

    def _task(self, index: int, row: Any, known: Mapping[int, KnownCalls]) -> Task:
        return ftrl_task(
            index,
            row,
            known=known.get(index),
            distractors=self.distractors,
            system_prompt=self.system_prompt,
            name=self.name,
        )


def in_train(index: int, train_fraction: float) -> bool:
    """Return whether a row is on the ``train`` side: its SHA-256 as a number in ``[0, 1)`` is below the share."""
    digest = hashlib.sha256(f"ftrl row {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < train_fraction


def _read_known_calls(path: Path, max_line_mb: int) -> dict[int, KnownCalls]:
    """Read the complete lines, by row number.

    Raises:
        TaskFileError: A line is not well formed or repeats a row number.
    """
    known: dict[int, KnownCalls] = {}
    for line, record in read_json_lines(path, max_line_mb):
        try:
            typed(record, dict, "(the line)")
            index = needed(record, "index", int)
            if index in known:
                raise TaskFieldError("index", f"row {index} is already on line {known[index].line}")
            calls = needed(record, "calls", list)
            if needed(record, "unsolved", list) or not calls:
                continue
            known[index] = KnownCalls(
                path,
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


def known_calls(task: Task) -> dict[str, Any]:
    """Run a task's reference calls, in order.

    Args:
        task: A task of :class:`~pact_lightning.FTRLTasks` with reference calls.

    Returns:
        A line of the file: ``index, calls`` [{``name, arguments, observation``}] and ``unsolved``, the expected answers
        that no response holds; a line with any gives no trace.
    """
    results = [result.text for result in replay_calls(task.prompt, task.reference.calls).results]
    calls = [{**call, "observation": text} for call, text in zip(task.reference.calls, results, strict=True)]
    solved_by = [(call["name"], text) for call, text in zip(task.reference.calls, results, strict=True)]
    unsolved = [answer.answer for answer in open_answers(solved_by, task.reference.sub_answers)]
    return {"index": task.metadata["index"], "calls": calls, "unsolved": unsolved}


def main(arguments: list[str]) -> int:
    """Run the command with a file of rows and the file to write; return the exit status."""
    if len(arguments) != 2:
        print(f"usage: python -m {__spec__.name} ROWS OUT", file=sys.stderr)  # noqa: T201  # a command
        return 2
    rows, out = map(Path, arguments)
    try:
        tasks = FTRLTasks(rows).load()
        lines = [known_calls(task) for task in tasks if task.reference.calls]
        write_json_lines(out, lines)
    except (TaskFileError, EnvironmentFailedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command
        return 2
    complete = sum(not line["unsolved"] for line in lines)
    print(f"{len(tasks)} rows: {len(lines)} with calls, of which {complete} solve their row")  # noqa: T201  # a command
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

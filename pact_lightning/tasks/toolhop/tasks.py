"""ToolHop's rows (arXiv 2501.02506) as tasks: a question over several tools, each a Python snippet in the row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pact_lightning.tasks.ftrl.row import ENVIRONMENT
from pact_lightning.tasks.jsonl import Scanned, scan_records, tasks_of
from pact_lightning.tasks.record import check_task
from pact_lightning.types.prompt import EnvironmentSpec, Message, PromptView, as_messages
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.utils.errors import TaskFieldError, needed, typed
from pact_lightning.utils.json_lines import MAX_FILE_MB, JsonLine, scan_json_list

KIND = "toolhop"
"""``kind`` of every task; ToolHop's metrics know their tasks by it."""
SYSTEM_PROMPT = (
    "Answer the question with what the tools return, one step after another, and not from memory. A date is written "
    "YYYY-MM-DD, a number in digits without leading zeros, a person as first name and last name. Once you know the "
    "answer, reply without a tool call and put nothing but the answer, as short as possible, between <answer> and "
    "</answer>."
)


class ToolHopTasks:
    """Tasks from a file in ToolHop's format: one JSON list, ``.json`` or ``.json.gz``.

    Of a row, ``id, question, answer, sub_task`` {sub-question: sub-answer}, ``tools`` {sub-question: {``name,
    description, parameters``}} and ``functions`` [source] are needed; other fields are ignored. The functions stand
    in the order of the tools. A row's id is ``{name}-{id}``, its kind :data:`KIND`. Tools run in
    :class:`pact_lightning.CodeToolEnvironment`; upstream gives every result as JSON, that class gives text as it is.
    The reference has the answer and, per sub-question, the tool that finds its answer. The rows do not say which
    arguments that takes; there are no reference calls.

    The upstream file was not at hand when this was written: the loader was tested on rows written in its format.

    Args:
        path: The file.
        indices: Only these row numbers, counted from 0; ``None`` for all.
        limit: Load at most this many tasks, after all other choices; ``None`` for all.
        system_prompt: A system message put before the question; ``None`` or empty for none. The wording is ours [D].
        name: Start of the ids.
        max_file_mb: Largest size of the file in MiB.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        indices: list[int] | None = None,
        limit: int | None = None,
        system_prompt: str | None = SYSTEM_PROMPT,
        name: str = KIND,
        max_file_mb: int = MAX_FILE_MB,
    ) -> None:
        self.path = Path(path)
        self.indices = None if indices is None else frozenset(indices)
        self.limit = limit
        self.system_prompt = system_prompt
        self.name = name
        self.max_file_mb = max_file_mb

    def load(self) -> Sequence[Task]:
        """Read and check the chosen rows, in the file's order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: The file or a row is not well formed; the error names item, counted from 1, and field.
            ValueError: ``indices`` names a row that the file does not have.
        """
        return list(tasks_of(self.scan()))

    def scan(self) -> Iterator[Scanned]:
        """Yield every chosen row as a task or its mistake.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: The file as a whole cannot be read.
            ValueError: ``indices`` names a row that the file does not have.
        """
        rows = made = 0

        def lines() -> Iterator[JsonLine]:
            nonlocal rows
            for item in scan_json_list(self.path, self.max_file_mb):
                rows += 1
                yield item

        def read(index: int, row: Any) -> Task | None:
            nonlocal made
            if self.indices is not None and index not in self.indices:
                return None
            if self.limit is not None and made >= self.limit:
                return None
            task = toolhop_task(index, row, system_prompt=self.system_prompt, name=self.name)
            made += 1
            return task

        yield from scan_records(self.path, lines(), read, unit="item")
        absent = [index for index in self.indices or () if not 0 <= index < rows]
        if absent:
            raise ValueError(f"indices names row {absent[0]}, but {self.path} has {rows} rows, counted from 0")


def toolhop_task(index: int, row: Any, *, system_prompt: str | None = SYSTEM_PROMPT, name: str = KIND) -> Task:
    """Make a task of a row.

    Args:
        index: The row's number, counted from 0; kept in the metadata.
        row: The row; see :class:`ToolHopTasks` for its fields.
        system_prompt: A system message put before the question; ``None`` or empty for none.
        name: Start of the id.

    Raises:
        TaskFieldError: A field is missing or wrong.
    """
    typed(row, dict, "(the row)")
    given_id = needed(row, "id")
    if isinstance(given_id, bool) or not isinstance(given_id, str | int):
        raise TaskFieldError("id", f"must be a string or an integer, got {type(given_id).__name__}")
    messages: list[Message] = [{"role": "user", "content": needed(row, "question", str)}]
    if system_prompt:
        messages = [{"role": "system", "content": system_prompt}, *messages]
    by_question = _tools(row)
    schemas, codes = _offered(by_question, _functions(row, len(by_question)))
    task = Task(
        prompt=PromptView(
            id=f"{name}-{given_id}",
            messages=as_messages(messages),
            tools=tuple(schemas),
            environment=EnvironmentSpec(ENVIRONMENT, {"codes": codes, "tools": schemas}),
        ),
        reference=Reference(answer=needed(row, "answer", str), sub_answers=_sub_answers(row, by_question)),
        kind=KIND,
        metadata={"index": index},
    )
    check_task(task)
    return task


def _tools(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tools' own schemas by sub-question."""
    tools: dict[str, dict[str, Any]] = needed(row, "tools", dict)
    for question, tool in tools.items():
        where = f"tools.{question}"
        needed(typed(tool, dict, where), "name", str, f"{where}.")
    return tools


def _functions(row: dict[str, Any], tools: int) -> list[str]:
    functions: list[str] = needed(row, "functions", list)
    if len(functions) != tools:
        raise TaskFieldError("functions", f"has {len(functions)} sources for {tools} tools; they must pair up")
    for number, source in enumerate(functions):
        typed(source, str, f"functions[{number}]")
    return functions


def _offered(
    by_question: dict[str, dict[str, Any]], functions: list[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return schemas in OpenAI format and sources by name; a tool that serves two sub-questions is offered once [D]."""
    schemas: list[dict[str, Any]] = []
    codes: dict[str, str] = {}
    for (question, tool), source in zip(by_question.items(), functions, strict=True):
        schema = {"type": "function", "function": dict(tool)}
        if codes.get(tool["name"]) == source and schema in schemas:
            continue
        if tool["name"] in codes:
            raise TaskFieldError(f"tools.{question}.name", f"{tool['name']!r} is the name of another tool as well")
        schemas.append(schema)
        codes[tool["name"]] = source
    return schemas, codes


def _sub_answers(row: dict[str, Any], by_question: dict[str, dict[str, Any]]) -> tuple[SubAnswer, ...]:
    sub_task: dict[str, str] = needed(row, "sub_task", dict)
    sub_answers = []
    for question, answer in sub_task.items():
        if question not in by_question:
            raise TaskFieldError(f"sub_task.{question}", "has no tool under the same sub-question in `tools`")
        sub_answers.append(SubAnswer(by_question[question]["name"], typed(answer, str, f"sub_task.{question}")))
    return tuple(sub_answers)

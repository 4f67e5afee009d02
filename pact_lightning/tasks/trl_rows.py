"""Rows of a data set made for TRL's ``environment_factory``, as tasks."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pact_lightning.environments.trl_style import TRLEnvironment
from pact_lightning.tasks.record import task_from_json
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import FAILURES, TaskFieldError, TaskFileError, named_failure, typed
from pact_lightning.utils.json_lines import read_json_lines
from pact_lightning.utils.table_nulls import without_nulls

_ADAPTER = "pact_lightning.TRLEnvironment"


class TRLRowTasks:
    """Tasks from rows and a class in TRL's style; see :class:`pact_lightning.TRLEnvironment`.

    Every row is given to the class's ``reset`` once while loading, in one object that is reset again and again, as in
    TRL. The text that comes back is appended to the last user message as it is, without a separator [C]; a row
    without ``prompt`` gives that text alone. Rollouts reset again, with an object of their own, and must get the same
    text: a class that draws at random has to take its seed from the row.

    Args:
        rows: The rows, or the path of a ``.jsonl`` or ``.jsonl.gz`` file with one row a line, which
            ``datasets.Dataset.to_json`` writes. ``prompt`` is a list of messages or a string.
        class_path: Import path of the class, or of a function without arguments that makes an object of it.
        init_args: The class's constructor arguments.
        answer_column: Column that holds the final answer, for rewards and metrics that need it; the class gets it too.
        reference_column: Column that holds a ``reference`` as in a task file. It is kept from the class.
        trace_column: Column that holds a ``trace`` as in a task file. It is kept from the class: no byte of an expert
            trace may reach a rollout.
        limit: Load at most this many rows, from the start; ``None`` for all.
        name: Start of the ids; a row's id is ``{name}-{row number}``, rows counted from 0.
    """

    def __init__(
        self,
        rows: str | Path | Sequence[Mapping[str, Any]],
        class_path: str,
        init_args: Mapping[str, Any] | None = None,
        *,
        answer_column: str | None = None,
        reference_column: str | None = None,
        trace_column: str | None = None,
        limit: int | None = None,
        name: str = "row",
    ) -> None:
        self.rows = rows
        self.class_path = class_path
        self.init_args = dict(init_args or {})
        self.answer_column = answer_column
        self.reference_column = reference_column
        self.trace_column = trace_column
        self.limit = limit
        self.name = name

    def load(self) -> Sequence[Task]:
        """Make the tasks, in the rows' order.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: A line is no well-formed row, or ``reset`` failed on it.
            TaskFieldError: The same of a row that is not from a file.
            ImportError: There is no such class.
            ValueError: The class has no ``reset``, or a method that cannot become a tool.
        """
        environment = TRLEnvironment(self.class_path, self.init_args)
        tasks: list[Task] = []
        try:
            for line, row in self._numbered_rows():
                if self.limit is not None and len(tasks) >= self.limit:
                    break
                try:
                    tasks.append(self._task(environment, len(tasks), row))
                except TaskFieldError as error:
                    if isinstance(self.rows, str | Path):
                        raise TaskFileError(self.rows, line, error.problem, error.field) from error
                    raise TaskFieldError(f"rows[{line}].{error.field}", error.problem) from error
        finally:
            environment.close()
        return tasks

    def _numbered_rows(self) -> Iterable[tuple[int, Any]]:
        """Return the rows with their line in the file, or their index in the list."""
        return read_json_lines(Path(self.rows)) if isinstance(self.rows, str | Path) else enumerate(self.rows)

    def _task(self, environment: TRLEnvironment, index: int, row: Any) -> Task:
        typed(row, Mapping, "(the row)")
        kept = {key: value for key, value in row.items() if key not in (self.reference_column, self.trace_column)}
        messages = _prompt_messages(row.get("prompt"))
        try:
            observation = environment.observe(kept)
        except FAILURES as error:  # the user's code: any failure is this row's
            problem = f"{self.class_path}.reset failed: {named_failure(error)}"
            raise TaskFieldError("(the row)", problem) from error
        messages[-1]["content"] = str(messages[-1].get("content", "")) + observation
        return task_from_json(
            {
                "id": f"{self.name}-{index}",
                "messages": messages,
                "tools": environment.tools,
                "environment": {
                    "class_path": _ADAPTER,
                    "init_args": {"class_path": self.class_path, "init_args": self.init_args, "row": kept},
                },
                "reference": self._reference(row),
                "trace": without_nulls(self._column(row, self.trace_column), ("arguments",)),
            }
        )

    def _reference(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        reference: dict[str, Any] | None = without_nulls(self._column(row, self.reference_column), ("arguments",))
        answer = self._column(row, self.answer_column)
        return reference if answer is None else {"answer": str(answer), **(reference or {})}

    def _column(self, row: Mapping[str, Any], column: str | None) -> Any:
        if column is not None and column not in row:
            raise TaskFieldError(column, "is missing; the row has no such column")
        return None if column is None else row[column]


def _prompt_messages(prompt: Any) -> list[dict[str, Any]]:
    """Return a prompt's messages as new dictionaries; at least one."""
    if prompt is None or isinstance(prompt, str):
        return [{"role": "user", "content": prompt or ""}]
    messages = [dict(typed(message, Mapping, "prompt")) for message in typed(prompt, list, "prompt")]
    if not messages or not isinstance(messages[-1].get("content"), str):
        raise TaskFieldError("prompt", "must end with a message whose content is a text")
    return messages

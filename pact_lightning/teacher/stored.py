"""Traces in task files and conversation files, loaded for a command."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pact_lightning.tasks.jsonl import JsonlTasks, load_source
from pact_lightning.teacher.build import default_id
from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.teacher.importers.reading import Problem, Record, read_records, record_files
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.types.trace import ExpertTurn
from pact_lightning.utils.errors import TaskFieldError
from pact_lightning.utils.imports import make_object
from pact_lightning.utils.yaml_text import read_yaml

StoredFormat = Literal["auto", "task", "openai", "sharegpt", "responses", "xlam", "toolrl"]


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """Trace with its prompt; the last turn's responses may be missing.

    Attributes:
        prompt: The prompt; its environment's class path is empty if the file names none.
        turns: The turns, the final one last.
        answer: The reference's answer, if known.
    """

    prompt: PromptView
    turns: tuple[ExpertTurn, ...]
    answer: str | None = None


def load_tasks(path: str | Path) -> Sequence[Task]:
    """Load tasks from a task file, or from the source that a YAML file names.

    Args:
        path: A file of the package's own format, or ``.yaml`` with ``class_path`` and ``init_args`` of a
            :class:`~pact_lightning.TaskSource`, as in a recipe.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: A line is not a well-formed task.
        ValueError: The YAML file names no task source.
        ImportError: The class it names cannot be imported.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        return JsonlTasks(path).load()
    try:
        value: Any = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or "class_path" not in value or value.keys() - {"class_path", "init_args"}:
        raise ValueError(f"{path}: must hold `class_path` and `init_args` of a task source, and nothing else")
    source = make_object(str(value["class_path"]), "task source", value.get("init_args"))
    if not isinstance(source, TaskSource):
        raise ValueError(f"{path}: {value['class_path']} is no task source; it has no method `load`")
    return load_source(source)


def is_task_file(path: Path) -> bool:
    """Recognise a task file by its first record's ``trace``, ``environment`` and roles."""
    if path.suffix in (".yaml", ".yml"):
        return True
    if path.is_dir() or not path.is_file():
        return False
    first = next((record for record in read_records(path) if isinstance(record, Record)), None)
    value = None if first is None else first.value
    if not isinstance(value, dict) or not {"messages", "environment"} <= value.keys():
        return False
    messages = value["messages"] if isinstance(value["messages"], list) else []
    roles = {message.get("role") for message in messages if isinstance(message, dict)}
    return "trace" in value or "assistant" not in roles


def read_stored(path: Path, format: StoredFormat = "auto") -> Iterator[StoredTrace | Problem]:
    """Read the traces of a file or folder.

    Args:
        path: A task file, a YAML file that names a task source, or conversations.
        format: The format; ``auto`` recognises it by the records.

    Yields:
        Each trace, or the problem of its record; tasks without a trace are left out.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: A line of a task file is not a well-formed task.
    """
    if format == "task" or (format == "auto" and is_task_file(path)):
        yield from task_traces(load_tasks(path))
        return
    for file in record_files(path):
        for record in read_records(file):
            yield record if isinstance(record, Problem) else _conversation(record, format)


def task_traces(tasks: Iterable[Task]) -> Iterator[StoredTrace]:
    """Yield the traces of tasks; those without one are left out."""
    for task in tasks:
        if task.trace is not None:
            final = () if task.trace.final is None else (task.trace.final,)
            yield StoredTrace(task.prompt, (*task.trace.turns, *final), task.reference.answer)


def _conversation(record: Record, format: StoredFormat) -> StoredTrace | Problem:
    try:
        conversation = read_conversation(record.value, "auto" if format == "task" else format)
    except TaskFieldError as error:
        reason = error.reason if isinstance(error, RecordError) else "broken record"
        return Problem(record.place, reason, error.problem, error.field)
    dialogue = conversation.dialogue
    last = (turn for turn in (dialogue.open_turn, dialogue.final) if turn is not None)
    prompt = PromptView(
        conversation.id or default_id(record.place),
        dialogue.messages,
        conversation.tools,
        conversation.environment or EnvironmentSpec(""),
        dialogue.follow_ups,
    )
    return StoredTrace(prompt, (*dialogue.turns, *last), conversation.reference.answer)

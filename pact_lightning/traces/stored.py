"""Traces as they lie in files, of tasks and of conversations alike, for commands that look at them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pact_lightning.import_path import make_object
from pact_lightning.tasks.checks import TaskFieldError
from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.tasks.prompt import EnvironmentSpec, PromptView
from pact_lightning.tasks.schema import Task
from pact_lightning.tasks.source import TaskSource
from pact_lightning.traces.build import default_id
from pact_lightning.traces.importers.conversation import RecordError
from pact_lightning.traces.importers.formats import read_conversation
from pact_lightning.traces.importers.reading import Problem, Record, read_records, record_files
from pact_lightning.traces.schema import ExpertTurn

StoredFormat = Literal["auto", "task", "openai", "sharegpt", "toolrl"]


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """A trace with its prompt; the last turn's responses may be missing.

    Attributes:
        prompt: The prompt; its environment's class path is empty where the file names none.
        turns: The turns, the final one last.
        answer: The reference's answer, where it is known.
    """

    prompt: PromptView
    turns: tuple[ExpertTurn, ...]
    answer: str | None = None


def load_tasks(path: str | Path) -> Sequence[Task]:
    """Loads tasks from a task file, or from the source that a YAML file names.

    Args:
        path: A file of the package's own format, or ``.yaml`` with ``class_path`` and ``init_args`` of a
            :class:`~pact_lightning.tasks.source.TaskSource`, as in a recipe.

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
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or "class_path" not in value or value.keys() - {"class_path", "init_args"}:
        raise ValueError(f"{path}: must hold `class_path` and `init_args` of a task source, and nothing else")
    source = make_object(str(value["class_path"]), "task source", value.get("init_args"))
    if not isinstance(source, TaskSource):
        raise ValueError(f"{path}: {value['class_path']} is no task source; it has no method `load`")
    return source.load()


def is_task_file(path: Path) -> bool:
    """Whether a file is of the package's own format: by its first record's ``trace``, ``environment`` and roles."""
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
    """Reads the traces of a file or folder.

    Args:
        path: A task file, a YAML file that names a task source, or conversations.
        format: ``auto`` to tell by the records.

    Yields:
        Each trace, or what is wrong with its record; a task without a trace is left out.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: A line of a task file is not a well-formed task.
    """
    if format == "task" or (format == "auto" and is_task_file(path)):
        for task in load_tasks(path):
            if task.trace is not None:
                final = () if task.trace.final is None else (task.trace.final,)
                yield StoredTrace(task.prompt, (*task.trace.turns, *final), task.reference.answer)
        return
    for file in record_files(path):
        for record in read_records(file):
            yield record if isinstance(record, Problem) else _conversation(record, format)


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

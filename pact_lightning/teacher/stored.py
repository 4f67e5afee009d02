"""Traces in task files and conversation files, loaded for a command and shown in colours.

:func:`read_stored` loads them. :func:`trace_view` shows a trace turn by turn, with the part of the reasoning that each
level supervises.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.teacher.build import default_id
from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.teacher.importers.reading import Problem, Record, read_records, record_files
from pact_lightning.traces.hard_turns import Flagged
from pact_lightning.traces.levels import MAX_LEVEL, NEVER, min_level_at, prefix_ends
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.types.trace import ExpertTurn
from pact_lightning.utils.errors import TaskFieldError
from pact_lightning.utils.imports import make_object

StoredFormat = Literal["auto", "task", "openai", "sharegpt", "responses", "xlam", "toolrl"]
STYLES = {
    "prompt": "dim",
    "reasoning": "green",
    "never": "red",
    "tool_call": "magenta",
    "observation": "cyan",
    "answer": "yellow",
}
"""Colours of components; ``never`` is reasoning that no level supervises."""
SHOWN_CHARACTERS = 400
"""Length above which a text is cut in the middle."""


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


def trace_view(trace: StoredTrace, flags: Sequence[Flagged] = (), *, full: bool = False) -> RenderableType:
    """Show a trace, turn by turn.

    Args:
        trace: The trace.
        flags: Its quality flags.
        full: Show long texts whole.
    """
    return Group(*_parts(trace, flags, full))


def level_table(turn: ExpertTurn, *, full: bool = False) -> Table:
    """Show the five prefixes of a turn's reasoning with their lengths; equal ones share a row.

    Args:
        turn: The turn.
        full: Show long prefixes whole.
    """
    table = Table(title="supervised reasoning, by level", title_justify="left", title_style="dim")
    table.add_column("level")
    table.add_column("characters", justify="right")
    table.add_column("prefix", overflow="fold")
    ends = prefix_ends(turn.chunks, turn.calls)
    for end, same in groupby(range(len(ends)), key=ends.__getitem__):
        levels = list(same)
        name = f"L{levels[0]}" if len(levels) == 1 else f"L{levels[0]}-L{levels[-1]}"
        prefix = _shown(turn.reasoning[:end].rstrip(), full) if end else "(none)"
        table.add_row(name, f"{end} of {len(turn.reasoning)}", Text(prefix, STYLES["reasoning"] if end else "dim"))
    return table


def _parts(trace: StoredTrace, flags: Sequence[Flagged], full: bool) -> Iterator[RenderableType]:
    yield Text(f"trace {trace.prompt.id}", style="bold")
    yield _legend()
    for message in trace.prompt.messages:
        yield Text(f"{message['role']}: {_shown(message['content'], full)}", STYLES["prompt"])
    coming = iter(trace.prompt.follow_ups)
    for index, turn in enumerate(trace.turns):
        yield Panel(_turn(turn, full), title=f"turn {index}: {turn.pattern.value}", title_align="left")
        if turn.reply is not None and (user := next(coming, None)) is not None:
            tools = "".join(f" [+ {tool['function']['name']}]" for tool in user.tools)
            yield Text(f"user: {_shown(user.content, full)}{tools}", STYLES["prompt"])
    for flagged in flags:
        where = "" if flagged.turn is None else f" in turn {flagged.turn}"
        yield Text(
            f"flag {flagged.flag.value}{where}{': ' if flagged.text else ''}{_shown(flagged.text, full)}", "bold red"
        )


def _turn(turn: ExpertTurn, full: bool) -> RenderableType:
    parts: list[RenderableType] = []
    ends = prefix_ends(turn.chunks, turn.calls)
    at = 0
    for chunk in turn.chunks:
        at += len(chunk.text)
        level = min_level_at(at, ends) if at else NEVER
        never = level > MAX_LEVEL
        label = f"{chunk.type.value}, {'never supervised' if never else f'from L{level}'}: "
        style = STYLES["never" if never else "reasoning"]
        parts.append(Text.assemble((label, "dim"), (_shown(chunk.text.strip(), full), style)))
    responses = [*turn.responses, *[None] * (len(turn.calls) - len(turn.responses))]
    for call, response in zip(turn.calls, responses, strict=True):
        arguments = _shown(json.dumps(call["arguments"], ensure_ascii=False), full)
        parts.append(
            Text.assemble(("call: ", "dim"), (f"{_shown(call['name'], full)} {arguments}", STYLES["tool_call"]))
        )
        said = "(not known)" if response is None else _shown(response, full)
        parts.append(Text.assemble(("response: ", "dim"), (said, STYLES["observation"])))
    if not turn.calls:
        parts.append(Text.assemble(("answer: ", "dim"), (_shown(turn.reply or turn.answer, full), STYLES["answer"])))
    if turn.reasoning and turn.calls:
        parts.append(level_table(turn, full=full))
    return Group(*parts)


def _legend() -> Text:
    names = [("reasoning", "reasoning"), ("reasoning that is never supervised", "never")]
    names += [(name, name) for name in ("tool_call", "observation", "answer", "prompt")]
    return Text.assemble(*[(f"{text}  ", STYLES[style]) for text, style in names])


def _shown(text: str, full: bool) -> str:
    """Make a text fit for a terminal: without escape sequences, and not too long."""
    visible = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    if full or len(visible) <= SHOWN_CHARACTERS:
        return visible
    half = SHOWN_CHARACTERS // 2
    return f"{visible[:half]} [... {len(visible) - 2 * half} characters ...] {visible[-half:]}"

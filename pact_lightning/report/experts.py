"""Known solutions of a run's tasks: the reference answer, and the expert trace with the levels of its reasoning."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from pact_lightning.report.rollouts import Json, cut
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.record import task_from_json, without_table_nulls
from pact_lightning.traces.levels import MAX_LEVEL, min_level_at, prefix_ends
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace, ExpertTurn
from pact_lightning.utils.errors import TaskFieldError, TaskFileError
from pact_lightning.utils.json_lines import MAX_LINE_MB, scan_json_lines

_SOURCES = ("train", "validation", "test", "predict")


def expert_json(trace: ExpertTrace) -> Json:
    """Return a trace as the page shows it: turns with chunks, calls and responses."""
    turns = [*trace.turns, *([] if trace.final is None else [trace.final])]
    return {"source": trace.source, "turns": [_turn(turn) for turn in turns]}


def _turn(turn: ExpertTurn) -> Json:
    ends = prefix_ends(turn.chunks, turn.calls)
    places = accumulate(len(chunk.text) for chunk in turn.chunks)
    levels = [min_level_at(place, ends) if place else MAX_LEVEL + 1 for place in places]
    return {
        "pattern": turn.pattern.value,
        "chunks": [
            {"text": cut(chunk.text), "type": chunk.type.value, "level": level if level <= MAX_LEVEL else None}
            for chunk, level in zip(turn.chunks, levels, strict=True)
        ],
        "calls": _calls(turn.calls),
        "responses": [cut(response) for response in turn.responses],
        "answer": cut(turn.reply or turn.answer),
    }


def _calls(calls: Iterable[ToolCall]) -> list[Json]:
    return [
        {"name": call["name"], "arguments": cut(json.dumps(call["arguments"], ensure_ascii=False))} for call in calls
    ]


def solution_json(task: Task) -> Json:
    """Return what is known of a task's solution as the page shows it: the trace, and the reference it is scored by."""
    trace = {"source": "", "turns": []} if task.trace is None else expert_json(task.trace)
    return {**trace, "answer": cut(task.reference.answer or ""), "calls": _calls(task.reference.calls)}


def experts_of(tasks: Iterable[Task], wanted: Collection[str]) -> dict[str, Json]:
    """Return the known solutions of tasks by id, without tasks of which nothing is known."""
    found = {task.id: solution_json(task) for task in tasks if task.id in wanted}
    return {name: known for name, known in found.items() if known["turns"] or known["answer"] or known["calls"]}


def recipe_experts(config: Mapping[str, Any], wanted: Collection[str]) -> tuple[dict[str, Json], list[str]]:
    """Find the known solutions of a run's tasks by its recipe, and run no code that the recipe or a task names.

    Bundled tasks are made anew; task files are read, but for tasks that leave their tools to their environment. Other
    sources are named in a sentence.

    Args:
        config: The run's ``config.yaml``.
        wanted: Ids of the tasks that are shown.

    Returns:
        The solutions by id, and sentences on sources that were not read.
    """
    data = config.get("data")
    sources = data.get("init_args") if isinstance(data, Mapping) else None
    found: dict[str, Json] = {}
    notes: list[str] = []
    for name in _SOURCES:
        source = sources.get(name) if isinstance(sources, Mapping) else None
        if not isinstance(source, Mapping):
            continue
        class_path, given = str(source.get("class_path")), source.get("init_args")
        arguments: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        own, kind = class_path.startswith("pact_lightning."), class_path.rpartition(".")[2]
        try:
            if own and kind == "BundledTasks":
                found |= experts_of(_bundled(arguments, wanted), wanted)
            elif own and kind == "JsonlTasks":
                found |= experts_of(_of_file(Path(str(arguments.get("path"))), arguments, wanted), wanted)
            else:
                notes.append(
                    f"the references and expert traces of data.{name} ({class_path}) are left out; give the tasks "
                    "with --tasks"
                )
        except (OSError, ValueError, TypeError) as error:
            notes.append(f"the references and expert traces of data.{name} are left out: {error}")
    return found, notes


def _bundled(arguments: Mapping[str, Any], wanted: Collection[str]) -> Iterable[Task]:
    split, start, count = str(arguments["split"]), int(arguments.get("start") or 0), int(arguments.get("count") or 0)
    flawed = float(arguments.get("flawed") or 0.0)
    for task_id in sorted(wanted):
        name = re.fullmatch(rf"{re.escape(split)}-(\d+)", task_id)
        if name is not None and start <= int(name[1]) < start + count:
            yield make_task(split, int(name[1]), flawed)


def _of_file(path: Path, arguments: Mapping[str, Any], wanted: Collection[str]) -> Iterable[Task]:
    for line in scan_json_lines(path, int(arguments.get("max_line_mb") or MAX_LINE_MB)):
        record = without_table_nulls(line.value)
        # Without its tools a task's environment would have to be made, and that may be anybody's code.
        if line.error is None and isinstance(record, Mapping) and record.get("id") in wanted and "tools" in record:
            try:
                yield task_from_json(record)
            except TaskFieldError as error:
                raise TaskFileError(path, line.number, error.problem, error.field) from error

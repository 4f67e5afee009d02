"""Command ``pact-lightning traces``: import, verification, segmentation and display of expert traces."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pact_lightning.cli.errors import run
from pact_lightning.cli.traces_generate import generate
from pact_lightning.cli.traces_show import show
from pact_lightning.tasks.jsonl import write_jsonl
from pact_lightning.teacher.annotator import AnnotatorConfig, LLMAnnotator
from pact_lightning.teacher.build import BuildOptions, BuildReport, build_tasks
from pact_lightning.teacher.importers.formats import Format
from pact_lightning.teacher.importers.reading import Problem, read_records, record_files
from pact_lightning.teacher.report import (
    add_responses,
    mean,
    report_record,
    report_table,
    turn_record,
    verdict_record,
    verdict_table,
)
from pact_lightning.teacher.stored import StoredFormat, StoredTrace, is_task_file, load_tasks, read_stored
from pact_lightning.traces.hard_turns import Annotator, flag_names, segment_trace, segment_turns
from pact_lightning.traces.verdict import OnMismatch, verified_task
from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.types.task import Task
from pact_lightning.utils.files import write_json, write_json_lines
from pact_lightning.utils.imports import make_object
from pact_lightning.utils.text import counted

_Item = TypeVar("_Item")
_UNCERTAIN = "rules, uncertain"


def build(
    source: str,
    out: str,
    *,
    format: Format = "auto",
    environment: str | None = None,
    environment_args: dict[str, Any] | None = None,
    record_environments: bool = False,
    tasks: str | None = None,
    system_prompt: str | None = None,
    trust_teacher: bool = False,
    on_mismatch: OnMismatch = "drop",
    tool_timeout_s: float = 30.0,
    annotator: AnnotatorConfig | None = None,
    annotator_class: str | None = None,
    annotator_args: dict[str, Any] | None = None,
    report: str | None = None,
    overwrite: bool = False,
) -> int:
    """Make a task file of conversations that verify by replay. Exit status: 0 if a trace was kept, 1 if none was.

    Args:
        source: A file (.jsonl, .jsonl.gz, .json) or a folder of such files.
        out: The task file to write, .jsonl or .jsonl.gz.
        format: The conversations' format; auto tells by the fields of each record.
        environment: Import path of the environment in which the records' tools run.
        environment_args: Its constructor arguments, as JSON.
        record_environments: Use the environments that records name. That runs whatever class they name: do it only with
            files that you trust.
        tasks: A task file. Each record is then a trace of the task of its id, and prompt, tools, environment and
            reference are the task's.
        system_prompt: Put in place of the records' own system messages.
        trust_teacher: Keep traces without a known answer, unless their last call failed, and take the teacher's final
            answer for the reference.
        on_mismatch: What becomes of a trace whose recorded responses the environment does not give: it is dropped, or
            gets the environment's in their place.
        tool_timeout_s: Seconds that one call may take.
        annotator: A language model that segments the turns that are hard for the rules (docs/teacher.md).
        annotator_class: In its place, the import path of a class of your own.
        annotator_args: Its constructor arguments, as JSON.
        report: The report to write; by default beside the task file, as .report.json.
        overwrite: Whether a task file that is there already may be replaced.

    Returns:
        0, or 1 where no trace was kept.
    """
    if environment_args is not None and environment is None:
        raise ValueError("environment_args are given without environment; say which class they are for")
    target = _new_json_lines(out, overwrite)
    options = BuildOptions(
        format=format,
        environment=None if environment is None else EnvironmentSpec(environment, environment_args or {}),
        record_environments=record_environments,
        tasks=None if tasks is None else {task.id: task for task in load_tasks(tasks)},
        system_prompt=system_prompt,
        trust_teacher=trust_teacher,
        on_mismatch=on_mismatch,
        tool_timeout_s=tool_timeout_s,
        annotator=_annotator(annotator, annotator_class, annotator_args),
    )
    found = BuildReport()
    records = (record for file in record_files(Path(source)) for record in read_records(file))
    write_jsonl(target, build_tasks(_counted(records, "records"), options, found))
    stem = target.name.removesuffix(".gz").removesuffix(".jsonl")
    path = target.with_name(f"{stem}.report.json") if report is None else Path(report)
    write_json(path, report_record(found, source))
    Console().print(report_table(found, f"{source} -> {out}"))
    _say(f"All dropped records, with file and line: {path}")
    return 0 if found.kept_by else 1


def verify(
    file: str,
    *,
    out: str | None = None,
    report: str | None = None,
    trust_teacher: bool = False,
    on_mismatch: OnMismatch = "drop",
    tool_timeout_s: float = 30.0,
    overwrite: bool = False,
) -> int:
    """Replay the traces of a task file and say which to keep. Exit status: 0 if all are kept, 1 if one is dropped.

    Args:
        file: A task file, or a .yaml file with class_path and init_args of a task source.
        out: Write the tasks whose traces are kept here.
        report: Write every verdict here, as JSON.
        trust_teacher: Keep traces without a known answer, unless their last call failed, and take the teacher's final
            answer for the reference of what is written.
        on_mismatch: drop drops a trace whose recorded responses the environment does not give; replace judges it, and
            writes it, with the environment's in their place.
        tool_timeout_s: Seconds that one call may take.
        overwrite: Whether a file that is there already may be replaced.

    Returns:
        0, or 1 where a trace is dropped.
    """
    target = None if out is None else _new_json_lines(out, overwrite)
    loaded = load_tasks(file)
    verdicts = [
        verified_task(task, on_mismatch=on_mismatch, timeout_s=tool_timeout_s, trust_teacher=trust_teacher)
        for task in _counted(loaded, "traces")
    ]
    flags: Counter[str] = Counter()
    for task, verdict in verdicts:
        if verdict.kept and task.trace is not None:
            flags.update(flag_names(task.trace, task.reference.answer))
    scores = [verdict.solve_f1 for _, verdict in verdicts if verdict.solve_f1 is not None]
    table = verdict_table(file, [(task.id, verdict) for task, verdict in verdicts], flags)
    exact, as_json, differs = (sum(verdict.agreement[kind] for _, verdict in verdicts) for kind in range(3))
    add_responses(table, (exact, as_json, differs), scores)
    Console().print(table)
    if target is not None:
        write_jsonl(target, (task for task, verdict in verdicts if verdict.kept))
    if report is not None:
        lines = [verdict_record(task, verdict) for task, verdict in verdicts]
        write_json(Path(report), {"source": file, "solve_f1": mean(scores), "traces": lines})
    dropped = any(not verdict.kept and task.trace is not None for task, verdict in verdicts)
    if report is not None:
        _say(f"All verdicts, with file and line: {report}")
    elif dropped:
        _say("Add --report FILE to write all verdicts, with file and line.")
    return int(dropped)


def segment(
    file: str,
    out: str,
    *,
    format: StoredFormat = "auto",
    annotator: AnnotatorConfig | None = None,
    annotator_class: str | None = None,
    annotator_args: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Cut the reasoning of every turn into typed chunks. Exit status: 0, or 1 if a record could not be read.

    Args:
        file: A task file, whose traces are segmented anew, or conversations (a file or a folder).
        out: Of tasks, the task file to write; of conversations, a JSON line per turn, with chunks and prefixes.
        format: What the file holds; auto tells by its records.
        annotator: A language model that segments the turns that are hard for the rules (docs/teacher.md).
        annotator_class: In its place, the import path of a class of your own.
        annotator_args: Its constructor arguments, as JSON.
        overwrite: Whether a file that is there already may be replaced.

    Returns:
        0, or 1 where a record could not be read.
    """
    target = _new_json_lines(out, overwrite)
    counts: Counter[str] = Counter()
    hard_turns = _annotator(annotator, annotator_class, annotator_args)
    if format == "task" or (format == "auto" and is_task_file(Path(file))):
        loaded = load_tasks(file)
        write_jsonl(target, (_segmented(task, hard_turns, counts) for task in _counted(loaded, "tasks")))
        _say_segmented(counts, [])
        return 0
    problems: list[Problem] = []
    stored = _counted(read_stored(Path(file), format), "records")
    write_json_lines(target, _turn_records(stored, hard_turns, counts, problems))
    _say_segmented(counts, problems)
    return int(bool(problems))


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: The words behind ``traces``.
    """
    functions: dict[str, Callable[..., int]] = {
        "build": build,
        "verify": verify,
        "segment": segment,
        "show": show,
        "generate": generate,
    }
    run(functions, "pact-lightning traces", arguments)


def _annotator(
    config: AnnotatorConfig | None, class_path: str | None, arguments: dict[str, Any] | None
) -> Annotator | None:
    if class_path is None and arguments is not None:
        raise ValueError("annotator_args are given without annotator_class; say which class they are for")
    if config is not None:
        if class_path is not None:
            raise ValueError("both annotator and annotator_class are given; choose one")
        return LLMAnnotator(config)
    if class_path is None:
        return None
    annotator: Annotator = make_object(class_path, "annotator", arguments)
    if not callable(getattr(annotator, "annotate", None)):
        raise ValueError(f"{class_path} is not an annotator: it has no method `annotate`")
    return annotator


def _segmented(task: Task, annotator: Annotator | None, counts: Counter[str]) -> Task:
    if task.trace is None:
        return task
    trace, counted = segment_trace(task.prompt, task.trace, annotator=annotator)
    counts.update(counted)
    return replace(task, trace=trace)


def _turn_records(
    stored: Iterable[StoredTrace | Problem],
    annotator: Annotator | None,
    counts: Counter[str],
    problems: list[Problem],
) -> Iterator[dict[str, Any]]:
    """Yield a line per turn; count what segmented the turns, and put aside what could not be read."""
    for trace in stored:
        if isinstance(trace, Problem):
            problems.append(trace)
            continue
        turns, counted = segment_turns(trace.prompt, trace.turns, annotator=annotator)
        counts.update(counted)
        for index, turn in enumerate(turns):
            yield turn_record(trace.prompt.id, index, turn)


def _new_json_lines(out: str, overwrite: bool) -> Path:
    """Return the path of a file to write.

    Raises:
        ValueError: Its name is not that of JSON Lines, or it is there already and must stay.
    """
    if not out.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{out}: the output is JSON Lines; use a name that ends in .jsonl or .jsonl.gz")
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} already exists; give another name, or --overwrite true")
    return Path(out)


def _counted(items: Iterable[_Item], what: str) -> Iterator[_Item]:
    """Pass items on and show their number on the error stream."""
    columns = (SpinnerColumn(), TextColumn("{task.completed} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        for item in items:
            yield item
            progress.advance(task)


def _say_segmented(counts: Counter[str], problems: Sequence[Problem]) -> None:
    """Print how many turns were segmented by what, and which records were left out.

    Args:
        counts: Turns by what segmented them, as :func:`~pact_lightning.traces.hard_turns.segment_turns` counts them.
        problems: Records that could not be read.
    """
    said = [f"{counted(counts['rules'] + counts[_UNCERTAIN], 'turn')} segmented by rules"]
    if counts[_UNCERTAIN]:
        verb = "is" if counts[_UNCERTAIN] == 1 else "are"
        said.append(f"{counts[_UNCERTAIN]} {verb} uncertain (inspect with `traces show`, or use an annotator)")
    said += [
        f"{count} segmented by the annotator" if name == "annotator" else f"{count} with {name}"
        for name, count in counts.most_common()
        if name not in ("rules", _UNCERTAIN)
    ]
    _say(f"{'; '.join(said)}.")
    for reason, count in Counter(problem.reason for problem in problems).most_common():
        example = next(problem for problem in problems if problem.reason == reason)
        _say(f"{count} {'record' if count == 1 else 'records'} left out, {reason}; the first: {example}")


def _say(sentence: str) -> None:
    """Print a sentence without markup and wrapping."""
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)

"""Command ``pact-lightning tasks``: import into a task file, validation and statistics of one."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pact_lightning.cli.errors import run
from pact_lightning.tasks.consistency import (
    EnvironmentChecks,
    environment_classes,
    located,
    replay_mistakes,
    trace_mistakes,
)
from pact_lightning.tasks.ftrl.tasks import FTRLTasks
from pact_lightning.tasks.hub import HubFormat, HubTasks
from pact_lightning.tasks.importing import ImportReport, check_own_format, import_tasks
from pact_lightning.tasks.jsonl import JsonlTasks, Scanned, load_source, scan_source
from pact_lightning.tasks.toolhop.tasks import ToolHopTasks
from pact_lightning.types.task import TaskSource
from pact_lightning.utils.errors import TaskFieldError, TaskFileError
from pact_lightning.utils.files import write_json
from pact_lightning.utils.json_text import JsonTextError, parse_json
from pact_lightning.utils.text import counted

_BUNDLED = "bundled"  # policy.loading.BUNDLED, whose import takes seconds


Format = Literal["jsonl", "ftrl", "matchtir", "toolhop", "hub"]
"""``matchtir`` is FTRL's format with ``ground_truth``; ``hub`` a data set by its id."""


def import_(
    output: Path,
    *,
    path: str | None = None,
    format: Format = "jsonl",
    source: TaskSource | None = None,
    split: str | None = None,
    revision: str | None = None,
    rows: HubFormat = "pact",
    reference_calls: str | None = None,
    replay: bool | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> int:
    """Write tasks of another format as a task file, and say what was left out and why.

    Args:
        output: The task file to write, .jsonl or .jsonl.gz.
        path: The file to read, which may also stand before the output; for the format hub a data set's id or a
            folder.
        format: What it holds.
        source: A task source by its class path, in place of path and format.
        split: Only rows of this split, for ftrl, matchtir and hub.
        revision: Branch, tag or commit of a data set of the hub.
        rows: What the rows of a data set of the hub are.
        reference_calls: A file of calls that solve FTRL's rows, with what they return.
        replay: Whether tasks with reference calls and no trace get one by making these calls in their environment;
            by default for matchtir only.
        limit: Write at most this many tasks.
        overwrite: Whether a file that is there already may be replaced.
    """
    if output.exists() and not overwrite:
        raise ValueError(f"{output} already exists; give another name, or --overwrite true")
    if source is None:
        source = _named(path, format, split=split, revision=revision, rows=rows, reference_calls=reference_calls)
    replay = format == "matchtir" if replay is None else replay
    report = import_tasks(source, output, replay=replay, limit=limit)
    Console().print(_import_table(report, output))
    return 0


def validate(
    files: list[str],
    *,
    format: Format = "jsonl",
    source: TaskSource | None = None,
    replay: bool = True,
    timeout_s: float = 30.0,
    max_line_mb: int = 64,
) -> int:
    """Tell all mistakes of task files with line and field; exit status 1 if there are any.

    Beyond what loading checks: environments can be made, traces fit the reference, and the calls of traces return what
    the traces say.

    Args:
        files: The files.
        format: What they hold; of formats other than jsonl, the first mistake of each row is told.
        source: A task source by its class path, in place of files.
        replay: Whether the calls of traces are made in their environment.
        timeout_s: Seconds that a call may take in the replay.
        max_line_mb: Longest line in MiB.
    """
    scanned: list[str | TaskSource] = [*([] if source is None else [source]), *files]
    if not scanned:
        raise ValueError("give the files to validate, or a --source")
    wrong = 0
    for one in scanned:
        name = one if isinstance(one, str) else type(one).__name__
        tasks = mistakes = 0
        for error in _mistakes(_scan(one, format, max_line_mb), replay, timeout_s):
            tasks += error is None
            if error is not None:
                mistakes += 1
                print(error)  # noqa: T201  # a command
        print(f"{name}: {counted(tasks, 'task')}, {counted(mistakes, 'mistake') if mistakes else 'no mistakes'}")  # noqa: T201
        wrong += mistakes
    return int(wrong > 0)


def stats(
    *,
    path: str | None = None,
    format: Format = "jsonl",
    source: TaskSource | None = None,
    split: str | None = None,
    tokenizer: str = _BUNDLED,
    max_prompt_tokens: int = 7000,
    json: Path | None = None,
    environments: bool = False,
) -> int:
    """Say what is in a set of tasks: kinds, lengths, tools, references, traces.

    Args:
        path: The file, which may also stand right after the command; for the format hub a data set's id or a folder.
        format: What it holds.
        source: A task source by its class path, in place of path and format.
        split: Only rows of this split, for ftrl, matchtir and hub.
        tokenizer: Folder or hub id of the model whose tokenizer counts, or bundled.
        max_prompt_tokens: The limit of training: how many tasks would it leave out?
        json: A file to write the figures to.
        environments: Only list the environment classes of a task file and the code that their arguments name, and run
            nothing of it: look at a file from elsewhere by it before anything else.
    """
    if environments:
        return _list_environments(path, format, source)
    if source is None:
        source = _named(path, format, split=split)
    tasks = load_source(source)
    if not tasks:
        raise ValueError("there are no tasks to count")
    # A tokenizer needs torch and transformers, which take seconds to import; nothing else here does.
    from pact_lightning.export.policy_renderer import renderer_of
    from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
    from pact_lightning.tasks.statistics import task_statistics

    policy = PolicyConfig(model=tokenizer, allow_template_difference=True)
    renderer = renderer_of(policy, load_tokenizer(policy))
    figures = {"tokenizer": tokenizer, **task_statistics(tasks, renderer, max_prompt_tokens)}
    Console().print(_length_table(figures))
    Console().print(_count_table(figures))
    if json is not None:
        write_json(json, figures)
    return 0


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: The words behind ``tasks``.
    """
    functions: dict[str, Callable[..., Any]] = {"import": import_, "validate": validate, "stats": stats}
    run(functions, "pact-lightning tasks", _as_options(arguments))


def _as_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite the words in front of the options for the parser, which knows no lists and no optional words.

    They are those of ``import IN OUT``, ``import OUT``, ``validate FILE FILE ...`` and ``stats IN``.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        return list(arguments)
    command, *rest = arguments
    words = list(takewhile(lambda argument: not argument.startswith("-"), rest))
    options = _source_as_one(rest[len(words) :])
    if command == "validate":
        return [command, json.dumps(words), *options]
    if (command, len(words)) in (("import", 2), ("stats", 1)):
        return [command, *words[1:], "--path", words[0], *options]
    return [command, *words, *options]


def _source_as_one(options: Sequence[str]) -> list[str]:
    """Join the options of a source which has a ``class_path`` of its own; a parser takes that for the source's.

    >>> _source_as_one(["--source", "a.Rows", "--source.rows=x", "--source.class_path", "b.Env", "--limit", "3"])
    ['--limit', '3', '--source', '{"class_path": "a.Rows", "init_args": {"rows": "x", "class_path": "b.Env"}}']
    """
    others: list[str] = []
    given: dict[str, str] = {}
    words = iter(options)
    for word in words:
        name, is_joined, value = word.partition("=")
        if name == "--source" or name.startswith("--source."):
            given[name] = value if is_joined else next(words, "")
        else:
            others.append(word)
    class_path = given.pop("--source", None) or given.pop("--source.class_path", None)
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        *parents, last = name.removeprefix("--source.").removeprefix("init_args.").split(".")
        place = arguments
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = _json_or_text(value)
    if class_path is None or class_path.startswith("{") or "class_path" not in arguments:
        return list(options)
    return [*others, "--source", json.dumps({"class_path": class_path, "init_args": arguments})]


def _json_or_text(value: str) -> Any:
    try:
        return parse_json(value)
    except JsonTextError:
        return value


def _named(
    path: str | None,
    format: Format,
    *,
    split: str | None = None,
    revision: str | None = None,
    rows: HubFormat = "pact",
    reference_calls: str | None = None,
) -> TaskSource:
    """Return the source that a format and a path stand for.

    Raises:
        ValueError: There is no path, or an option is not an option of the format.
    """
    if path is None:
        raise ValueError("give what to read: a path and its --format, or a --source")
    ftrl = format in ("ftrl", "matchtir")
    unused = {
        "--split": split is not None and not (ftrl or format == "hub"),
        "--revision": revision is not None and format != "hub",
        "--rows": rows != "pact" and format != "hub",
        "--reference_calls": reference_calls is not None and not ftrl,
    }
    wrong = next((name for name, is_wrong in unused.items() if is_wrong), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is not an option of the format {format}")
    if format == "hub":
        return HubTasks(path, split or "train", revision=revision, format=rows)
    if ftrl:
        return FTRLTasks(path, split=split, reference_calls=reference_calls)
    if format == "toolhop":
        return ToolHopTasks(path)
    check_own_format(Path(path))
    return JsonlTasks(path)


def _list_environments(path: str | None, format: Format, source: TaskSource | None) -> int:
    if path is None or format != "jsonl" or source is not None:
        raise ValueError("--environments lists those of a task file of the package's own format; give its path alone")
    check_own_format(Path(path))
    found, unreadable = environment_classes(Path(path))
    for named, count in found.most_common():
        print(f"{count:7,} {named}")  # noqa: T201  # a command
    if unreadable:
        print(f"{unreadable:7,} lines name no environment; `tasks validate` says why")  # noqa: T201
    return 0


def _scan(what: str | TaskSource, format: Format, max_line_mb: int) -> Iterator[Scanned]:
    """Yield every record of a file or a source; a mistake that ends it is one more entry."""
    try:
        if not isinstance(what, str):
            yield from scan_source(what)
        elif format == "jsonl":
            check_own_format(Path(what))
            yield from JsonlTasks(what, max_line_mb=max_line_mb).scan()
        else:
            yield from scan_source(_named(what, format))
    except TaskFileError as error:
        yield Scanned(error.line, errors=(error,))


def _mistakes(scanned: Iterator[Scanned], replay: bool, timeout_s: float) -> Iterator[ValueError | None]:
    """Yield the mistakes, and ``None`` for every task."""
    checks, told = EnvironmentChecks(), list[TaskFieldError]()
    for entry in scanned:
        if entry.task is None:
            yield from entry.errors
            continue
        yield None
        found = trace_mistakes(entry.task)
        mistake = checks.mistake(entry.task)
        if mistake is None and replay:
            found += replay_mistakes(entry.task, timeout_s)
        elif mistake is not None and all(mistake is not other for other in told):
            told.append(mistake)  # once for all tasks that share it
            found.append(mistake)
        for error in found:
            yield located(entry.task, error)


def _import_table(report: ImportReport, output: Path) -> Table:
    """Tabulate what became of the records of an import."""
    table = Table(title=str(output))
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("for example", overflow="fold")
    table.add_row("read", str(report.read), "")
    for field, tally in report.dropped.items():
        table.add_row(f"left out for {field}", str(tally.count), tally.first)
    table.add_row("written", str(report.written), "")
    if report.traces or report.no_trace:
        table.add_row("traces made by replay", str(report.traces), "")
    for reason, tally in report.no_trace.items():
        table.add_row(f"without a trace: {reason}", str(tally.count), tally.first)
    return table


def _length_table(figures: Mapping[str, Any]) -> Table:
    """Tabulate lengths and numbers per task, of the statistics and the tokenizer's name in ``figures``."""
    table = Table(title=f"{counted(figures['tasks'], 'task')}, lengths in tokens of {figures['tokenizer']}")
    if figures["tokenizer"] == _BUNDLED:
        table.caption = (
            "These lengths are for the bundled policy's tokenizer. For your model's, add --tokenizer FOLDER_OR_HUB_ID."
        )
        table.caption_justify = "left"
    for name in ("", "min", "median", "p90", "max"):
        table.add_column(name, justify="right" if name else "left")
    traces, follow_ups = figures["traces"], figures["follow_ups"]
    spreads = {
        "prompt, tokens": figures["prompt_tokens"],
        "tools per task": figures["tools"],
        "follow-ups": follow_ups["turns"],
        "trace, turns": traces["turns"],
        "trace, calls": traces["calls"],
        "trace, tokens": traces["tokens"],
    }
    for name, spread in spreads.items():
        if spread:
            table.add_row(name, *(f"{spread[column]:,.0f}" for column in ("min", "median", "p90", "max")))
    return table


def _count_table(figures: Mapping[str, Any]) -> Table:
    """Count the tasks by what they have."""
    counts = Table(title="Tasks")
    counts.add_column("")
    counts.add_column("", justify="right")
    left_out, traces = figures["left_out"], figures["traces"]
    rows = {f"kind {kind or '(none)'}": count for kind, count in figures["kinds"].items()}
    rows |= {f"with reference {name}": count for name, count in figures["references"].items()}
    rows |= {"with follow-ups": figures["follow_ups"]["tasks"], "with a trace": traces["tasks"]}
    rows |= {"with reasoning in the trace": traces["with_reasoning"], "with a final answer turn": traces["with_final"]}
    rows[f"left out by max_prompt_tokens {left_out['max_prompt_tokens']}"] = left_out["tasks"]
    for name, count in rows.items():
        counts.add_row(name, str(count))
    return counts

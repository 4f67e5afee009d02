"""Command ``pact-lightning check-env``: mistakes of a user's own environment, and how to mend them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pact_lightning.cli.errors import run
from pact_lightning.environments.checker.checker import ALL_FAILED, check_environment
from pact_lightning.environments.checker.findings import Finding, Severity, without_repeats
from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import FAILURES, named_failure
from pact_lightning.utils.imports import import_path, make_object
from pact_lightning.utils.text import counted


def check_env(
    class_path: str,
    *,
    init_args: dict[str, Any] | None = None,
    task: Path | list[Path] | None = None,
    tasks_per_file: int = 3,
    limit_s: float = 10.0,
    seed: int = 0,
    allow_warnings: bool = False,
) -> int:
    """Check an environment before anything is trained on it, and print what is wrong and how to fix it.

    Every tool is really run, with arguments made up from its schema; do not point this at tools that must not be
    played with. The exit status is 1 if anything was found, 0 if not, 2 if the environment cannot be made.

    Args:
        class_path: Import path of the environment's class.
        init_args: Its constructor arguments, as JSON; left out, those of each task.
        task: A task file, or several (--task '[a.jsonl, b.jsonl]'), with whose tasks of this class it is checked.
        tasks_per_file: So many tasks of each file, from its start.
        limit_s: Seconds that any call may take.
        seed: Seed of the resets.
        allow_warnings: Whether warnings alone still end in exit status 0.
    """
    if "." not in class_path:
        raise ValueError(f"class_path must be an import path such as my_tools.MyEnvironment, got {class_path!r}")
    tasks = _tasks(class_path, [task] if isinstance(task, Path) else task or [], tasks_per_file)
    checked: list[Task | None] = list(tasks) or [None]
    each: list[list[Finding]] = []
    for one in checked:
        given = one.prompt.environment.init_args if one is not None and init_args is None else init_args
        # Not as a task's environment is made: the checks say what an unfinished class lacks.
        make = partial(make_object, class_path, "environment class", given)
        each.append(check_environment(_made(make, class_path), one, seed=seed, limit_s=limit_s, another=make))
    findings = without_repeats(_joined(each))
    console = Console()
    if findings:
        console.print(_findings_table(class_path, findings))
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    what = counted(len(tasks), "task") if tasks else "no task"
    counts = f"{counted(errors, 'error')}, {counted(len(findings) - errors, 'warning')}"
    console.print(f"{class_path}, with {what}: {counts}", soft_wrap=True)
    return int(bool(errors) if allow_warnings else bool(findings))


def _made(make: Callable[[], Any], class_path: str) -> Any:
    try:
        return make()
    except (ImportError, ValueError):
        raise
    except FAILURES as error:
        raise ValueError(f"the environment {class_path!r} cannot be created: {named_failure(error)}") from error


def _joined(each: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return the findings of all tasks; a tool that works in one task counts as working in all."""
    failing = [{found.where for found in findings if found.problem.startswith(ALL_FAILED)} for findings in each]
    nowhere = failing[0].intersection(*failing[1:])
    return [
        found
        for findings in each
        for found in findings
        if not found.problem.startswith(ALL_FAILED) or found.where in nowhere
    ]


def _findings_table(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title, show_lines=True)
    table.add_column("", no_wrap=True)
    for heading in ("where", "what is wrong", "how to fix it"):
        table.add_column(heading, overflow="fold")  # what differs may stand in the middle of a long word
    for finding in findings:
        style = "red" if finding.severity is Severity.ERROR else "yellow"
        cells = (finding.where, finding.problem, finding.remedy)
        # Text, since tools' own words may look like rich's markup.
        table.add_row(Text(finding.severity, style), *(Text(_printable(cell)) for cell in cells))
    return table


def _printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show, such as the name of a tool may hold."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _tasks(class_path: str, files: Sequence[Path], per_file: int) -> list[Task]:
    """Return the first tasks of each file that run in the class.

    Raises:
        ValueError: A file has none.
    """
    found: list[Task] = []
    for file in files:
        own = [task for task in JsonlTasks(file).load() if _is_class(task.prompt.environment.class_path, class_path)]
        if not own:
            raise ValueError(f"{file} has no task whose environment.class_path is {class_path}")
        found += own[:per_file]
    return found


def _is_class(path: str, class_path: str) -> bool:
    """Return whether two paths name one class, such as a public name and its home.

    Only paths of the checked class's own package are imported: a task file may name anybody's code.
    """
    if path == class_path or path.partition(".")[0] != class_path.partition(".")[0]:
        return path == class_path
    return import_path(path, "environment class") is import_path(class_path, "environment class")


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: The words behind ``check-env``.
    """
    run(check_env, "pact-lightning check-env", arguments)

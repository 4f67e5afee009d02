"""Command ``pact-lightning traces generate``: expert traces from a teacher behind an OpenAI-compatible endpoint."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pact_lightning.tasks.jsonl import JsonlTasks, load_source, write_jsonl
from pact_lightning.teacher.annotator import AnnotatorConfig, LLMAnnotator
from pact_lightning.teacher.endpoint import Endpoint, EndpointConfig, EndpointError
from pact_lightning.teacher.generate import GenerationLog, GenerationStoppedError, Teacher, TeacherConfig, run_settings
from pact_lightning.teacher.generation_report import generation_report, report_table
from pact_lightning.traces.hard_turns import is_hard
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.utils.files import write_json

_INTERRUPTED = 130  # exit status
_SHOWN = 3  # tasks that were left; the report names all


def generate(
    tasks: str | TaskSource,
    out: str,
    endpoint: EndpointConfig,
    teacher: TeacherConfig = TeacherConfig(),  # noqa: B008  # frozen
    annotator: AnnotatorConfig | None = None,
    *,
    untraced: bool = False,
) -> int:
    """Let a teacher solve tasks and keep what verifies as expert traces.

    Beside OUT lie its log (.log.jsonl), with every attempt, and a report (.report.json). The same command started again
    goes on where it was stopped: a task that is in the log is not paid for twice.

    Args:
        tasks: A task file, or a task source as class_path and init_args.
        out: Where the tasks go with their traces, in their order; a .jsonl file.
        endpoint: The teacher.
        teacher: How it is asked, and where an attempt ends.
        annotator: A model that cuts the reasoning of kept traces into chunks; without one the rules do.
        untraced: Also write the tasks for which no trace was kept, without one.

    Returns:
        0; 1 where tasks were left for another run; 130 after an interruption.

    Raises:
        ValueError: OUT is another file's name, there are no tasks, the log was made with other settings, or the key is
            not set.
        EndpointError: The endpoint is of no use; what was finished before is written.
        GenerationStoppedError: Too many tasks in a row could not be tried; likewise.
    """
    target = Path(out)
    if target.suffix != ".jsonl":
        raise ValueError(f"out must be a .jsonl file, got {out!r}")
    if target.exists() and not target.with_suffix(".log.jsonl").exists():
        raise ValueError(
            f"{target} exists and was not written by this command (it has no log beside it); give another name"
        )
    loaded = load_source(JsonlTasks(tasks) if isinstance(tasks, str) else tasks)
    if not loaded:
        raise ValueError("there are no tasks to generate traces for")
    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    session = _Session(loaded, target, Endpoint(endpoint), teacher, console)
    return session.run(None if annotator is None else LLMAnnotator(annotator), untraced=untraced)


class _Session:
    """One start of the command: its progress, its log and its report."""

    def __init__(
        self, tasks: Sequence[Task], out: Path, endpoint: Endpoint, config: TeacherConfig, console: Console
    ) -> None:
        self.tasks = tasks
        self.out = out
        self.endpoint = endpoint
        self.config = config
        self.console = console
        self.kept = 0

    def run(self, annotator: LLMAnnotator | None, *, untraced: bool) -> int:
        log = GenerationLog(self.out.with_suffix(".log.jsonl"), run_settings(self.endpoint, self.config, annotator))
        if log.torn:
            self.console.print(f"{log.path}: an incomplete last line was removed; its task is repeated", markup=False)
        teacher = Teacher(self.endpoint, self.config, annotator, is_hard)
        stopped: OSError | None = None
        try:
            asyncio.run(self._generate(teacher, log))
        except (EndpointError, GenerationStoppedError) as error:
            stopped = error
        except KeyboardInterrupt:
            self.console.print("interrupted; run the same command to continue")
            return _INTERRUPTED
        finally:
            log.close()
            if annotator is not None:
                annotator.close()
        self._write(teacher, log, untraced=untraced)
        if stopped is not None:
            raise stopped
        return int(bool(teacher.left))

    async def _generate(self, teacher: Teacher, log: GenerationLog) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[facts]}"), console=self.console) as bar:
            known = [record for task in self.tasks if (record := log.record_of(task)) is not None]
            self.kept = sum(record["trace"] is not None for record in known)
            line = bar.add_task("traces", total=len(self.tasks), completed=len(known), facts=self._facts())

            def show(record: Mapping[str, Any] | None) -> None:
                self.kept += record is not None and record["trace"] is not None
                bar.update(line, advance=1, facts=self._facts())

            async with self.endpoint:
                if teacher.annotator is None:
                    await teacher.generate(self.tasks, log, show)
                else:
                    async with teacher.annotator:
                        await teacher.generate(self.tasks, log, show)

    def _facts(self) -> str:
        usage = self.endpoint.usage
        tokens = usage.prompt_tokens + usage.completion_tokens
        return f"{self.kept} kept, {tokens:,} tokens, cost {usage.cost(self.endpoint.config):.4f}"

    def _write(self, teacher: Teacher, log: GenerationLog, *, untraced: bool) -> None:
        report = generation_report(self.tasks, log, teacher)
        traced = [replace(task, trace=log.trace_of(task)) for task in self.tasks]
        write_jsonl(self.out, [task for task in traced if untraced or task.trace is not None])
        write_json(self.out.with_suffix(".report.json"), report)
        self.console.print(report_table(report))
        for task_id, why in list(report["left"].items())[:_SHOWN]:
            self.console.print(f"left: {task_id}: {why}", markup=False)
        self.console.print(f"{report['kept']} traces in {self.out}; every attempt is in {log.path}", markup=False)

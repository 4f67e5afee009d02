"""Generation of expert traces by a teacher: several attempts per task, many tasks at a time, nothing paid twice.

:class:`Teacher` works through the tasks. :class:`GenerationLog` keeps a line per finished task, from which a stopped
run resumes.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pact_lightning.environments.tool_calls import ToolThreads
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.teacher.annotator import LLMAnnotator
from pact_lightning.teacher.attempt import (
    KEPT,
    Attempt,
    CannotBeVerifiedError,
    TeacherLimits,
    attempt_task,
    judge_attempt,
    with_chunks,
)
from pact_lightning.teacher.endpoint import Endpoint, EndpointError, RequestFailedError
from pact_lightning.teacher.turn import PROMPT_VERSION, CallFormat
from pact_lightning.traces.replay import EnvironmentFailedError
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ExpertTrace
from pact_lightning.utils.errors import TaskFieldError
from pact_lightning.utils.json_lines import AppendLog

FAILURES_IN_A_ROW = 10
"""Number of consecutive tasks that could not be tried to the end after which the run stops."""

Progress = Callable[[Mapping[str, Any] | None], None]


class GenerationLog:
    """Log of generated traces: one line per finished task, under a first line with the settings.

    Args:
        path: The file; see :class:`~pact_lightning.utils.json_lines.AppendLog`.
        settings: The settings that decide the prompts (:func:`run_settings`). A log of other settings is refused.

    Attributes:
        path: The file.
        finished: The newest record of each task, by its fingerprint.
        torn: True if a torn last line was removed.

    Raises:
        ValueError: The file is the log of other settings, or no such log.
        TaskFileError: A line is not JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))  # as the file gives them back
        self.path = path
        self._log = AppendLog(path)
        self.torn = self._log.torn
        if not self._log.records:
            self._log.append({"settings": settings})
        else:
            first = self._log.records[0]
            made_by = first.get("settings") if isinstance(first, dict) else None
            if made_by != settings:
                self._log.close()
                raise ValueError(_other_settings(path, made_by, settings))
        self.finished: dict[str, Mapping[str, Any]] = {
            record["fingerprint"]: record for record in self._log.records[1:]
        }

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the record of a task."""
        self._log.append(record)
        self.finished[record["fingerprint"]] = record

    def record_of(self, task: Task) -> Mapping[str, Any] | None:
        """Return the record of a task; ``None`` if it is not finished."""
        return self.finished.get(fingerprint(task))

    def trace_of(self, task: Task) -> ExpertTrace | None:
        """Return the task's trace, read and checked like one of a task file; ``None`` if none was kept.

        Raises:
            ValueError: It is malformed, since the log was changed by hand.
        """
        record = self.record_of(task)
        if record is None or record.get("trace") is None:
            return None
        try:
            return task_from_json(task_to_json(task) | {"trace": record["trace"]}).trace
        except TaskFieldError as error:
            raise ValueError(f"{self.path}, task {task.id!r}: {error}; delete its line to repeat it") from error

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def fingerprint(task: Task) -> str:
    """Hash a task without its trace; a changed task is asked anew."""
    record = {name: value for name, value in task_to_json(task).items() if name != "trace"}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def _other_settings(path: Path, made_by: Any, settings: Mapping[str, Any]) -> str:
    if not isinstance(made_by, dict):
        return f"{path} is not a log of generated traces; name another file"
    changed = sorted(key for key in {*made_by, *settings} if made_by.get(key) != settings.get(key))
    return (
        f"{path} was made with other settings ({', '.join(changed)}); use the same settings, or write to another file"
    )


class GenerationStoppedError(OSError):
    """Failure of ``FAILURES_IN_A_ROW`` tasks in a row."""


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the generation.

    Attributes:
        call_format: ``native`` for the protocol's tool calls, ``text`` for ``<tool_call>`` in the text.
        attempts: Most attempts per task; the first that is kept ends them.
        limits: Limits of an attempt.
        seed: Seed of the environments; a replay with the same seed finds the same responses.
        send_reasoning: Send a turn's thinking back with it, in the server's own field: training keeps earlier
            thinking too. Off for servers that refuse the field.

    Raises:
        ValueError: There is no such format, or no attempt is allowed.
    """

    call_format: CallFormat = "native"
    attempts: int = 4
    limits: TeacherLimits = field(default_factory=TeacherLimits)
    seed: int = 0
    send_reasoning: bool = True

    def __post_init__(self) -> None:
        if self.call_format not in ("native", "text"):
            raise ValueError(f"call_format must be native or text, got {self.call_format!r}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


def run_settings(endpoint: Endpoint, config: TeacherConfig, annotator: LLMAnnotator | None) -> dict[str, Any]:
    """Return the settings that decide the prompts and the use of the answers: no key, no address, no price."""
    teacher = endpoint.config
    return {
        "model": teacher.model,
        "temperature": teacher.temperature,
        "max_tokens": teacher.max_tokens,
        "extra_body": dict(teacher.extra_body),
        **asdict(config),
        "prompt_version": PROMPT_VERSION,
        "annotator": None if annotator is None else annotator.settings,
    }


class Teacher:
    """Generator of traces.

    Args:
        endpoint: The teacher's endpoint, open.
        config: The settings.
        annotator: The segmenter of kept traces, its endpoint open; ``None`` for the rules.
        is_hard: Test for turns that the annotator gets, by the rules' chunks, reasoning and calls; ``None`` for all.

    Attributes:
        left: Reasons for tasks left for another run, by id: the endpoint did not answer, the environment does not
            start, or nothing can verify a solution. They are not in the log.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        config: TeacherConfig,
        annotator: LLMAnnotator | None = None,
        is_hard: Callable[[Sequence[Chunk], str, Sequence[ToolCall]], bool] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.config = config
        self.annotator = annotator
        self.is_hard = is_hard
        self.left: dict[str, str] = {}
        self._in_a_row = 0
        self._tools = ToolThreads(endpoint.config.concurrency, config.limits.tool_timeout_s)

    async def generate(self, tasks: Sequence[Task], log: GenerationLog, progress: Progress | None = None) -> None:
        """Work through the tasks that are not in the log, ``endpoint.config.concurrency`` at a time.

        Args:
            tasks: The tasks.
            log: The log of finished tasks.
            progress: Called after each task with its record; with ``None`` for a task that is left.

        Raises:
            EndpointError: The endpoint cannot be used. The tasks finished before are in the log.
            GenerationStoppedError: Too many tasks in a row got no answer, or no environment.
        """
        waiting = iter([task for task in tasks if log.record_of(task) is None])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.endpoint.config.concurrency):
                    group.create_task(self._work(waiting, log, progress))
        except* (EndpointError, GenerationStoppedError) as errors:
            error = _first(errors)
        else:
            return
        raise error

    async def _work(self, waiting: Iterator[Task], log: GenerationLog, progress: Progress | None) -> None:
        for task in waiting:
            record = None
            try:
                record = await self.record(task)
                log.add(record)
                self._in_a_row = 0
            except CannotBeVerifiedError as error:
                self.left[task.id] = str(error)
            except (RequestFailedError, EnvironmentFailedError) as error:
                self.left[task.id] = str(error)
                self._in_a_row += 1
                if self._in_a_row >= FAILURES_IN_A_ROW:
                    message = f"{FAILURES_IN_A_ROW} tasks in a row failed; the last, {task.id}: {error}"
                    raise GenerationStoppedError(message) from error
            if progress is not None:
                progress(record)

    async def record(self, task: Task) -> dict[str, Any]:
        """Let the teacher try one task, and return its record for the log.

        Raises:
            RequestFailedError: The endpoint did not answer.
            EnvironmentFailedError: The environment does not start.
            CannotBeVerifiedError: Nothing can verify a solution of the task.
            EndpointError: The endpoint cannot be used.
        """
        attempts: list[dict[str, Any]] = []
        trace: ExpertTrace | None = None
        for _ in range(self.config.attempts):
            attempt = await attempt_task(
                task,
                self.endpoint,
                self._tools,
                limits=self.config.limits,
                call_format=self.config.call_format,
                seed=self.config.seed,
                send_reasoning=self.config.send_reasoning,
            )
            outcome, detail, trace = judge_attempt(task, attempt, f"teacher {self.endpoint.config.model}")
            attempts.append(_attempt_record(attempt, outcome, detail))
            if outcome == KEPT:
                break
        if trace is not None and self.annotator is not None:
            trace = await self._annotated(task, trace, self.annotator)
        done = None if trace is None else task_to_json(Task(task.prompt, trace=trace))["trace"]
        return {"id": task.id, "fingerprint": fingerprint(task), "attempts": attempts, "trace": done}

    async def _annotated(self, task: Task, trace: ExpertTrace, annotator: LLMAnnotator) -> ExpertTrace:
        question = task.prompt.messages[-1]["content"]
        chunks = [turn.chunks for turn in trace.turns]
        hard = [
            index
            for index, turn in enumerate(trace.turns)
            if self.is_hard is None or self.is_hard(turn.chunks, turn.reasoning, turn.calls)
        ]
        turns = [(trace.turns[index].reasoning, trace.turns[index].calls, question) for index in hard]
        for index, annotated in zip(hard, await annotator.segment_all(turns), strict=True):
            chunks[index] = annotated
        return with_chunks(trace, chunks)


def _attempt_record(attempt: Attempt, outcome: str, detail: str) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "detail": detail,
        "turns": len(attempt.turns),
        "calls": len(attempt.executed),
        "usage": asdict(attempt.usage),
        "messages": attempt.messages,
    }


def _first(errors: BaseExceptionGroup[OSError]) -> OSError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found

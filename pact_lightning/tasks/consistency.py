"""Consistency of a task's parts: environment, reference and trace.

:func:`environment_classes` lists the code that a task file names, from its JSON alone: it imports, makes and runs
nothing.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pact_lightning.credit.answers import answer_in_response, answers_match, open_answers
from pact_lightning.credit.rewards import extract_answer
from pact_lightning.environments.protocol import close_environment
from pact_lightning.environments.sandbox.sandbox import SandboxError
from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.traces.replay import EnvironmentFailedError, replay_calls, same_response
from pact_lightning.traces.verdict import response_is_answer
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace
from pact_lightning.utils.errors import FAILURES, TaskFieldError, TaskFileError, differing, named_failure, shortened
from pact_lightning.utils.json_lines import scan_json_lines

_NAMES_CODE = ("class_path", "functions", "server", "command", "args", "url")
"""Arguments by which the environments of this package name further code: TRL's class, functions, an MCP server."""


def environment_classes(path: Path) -> tuple[Counter[str], int]:
    """Count the environments of a file of the package's own format.

    The lines are read by the parser that loads them: escapes and repeated keys hide nothing.

    Args:
        path: The task file.

    Returns:
        Tasks per ``environment.class_path`` with the code that its arguments name; and the number of lines that name
        no class, which can be no tasks.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found: Counter[str] = Counter()
    unreadable = 0
    for line in scan_json_lines(path):
        named = _named(line.value) if line.error is None else None
        if named is None:
            unreadable += 1
        else:
            found[named] += 1
    return found, unreadable


def _named(record: Any) -> str | None:
    environment = record.get("environment") if isinstance(record, dict) else None
    if not isinstance(environment, dict) or not isinstance(environment.get("class_path"), str):
        return None
    arguments = environment.get("init_args")
    further = (
        {name: arguments[name] for name in _NAMES_CODE if name in arguments} if isinstance(arguments, dict) else {}
    )
    # As JSON with its escapes, so that no text can write over what a terminal shows.
    class_path = json.dumps(environment["class_path"])[1:-1]
    return " ".join([class_path, *(f"{name}={json.dumps(value)}" for name, value in further.items())])


def trace_mistakes(task: Task) -> list[TaskFieldError]:
    """Find what in a task's trace contradicts its reference, or disqualifies it as an expert trace.

    A trace is kept only if its final answer or its last tool response verifies against the reference [P]; where the
    reference has sub-answers, its responses must hold all of them, and verify it, whatever the last one holds [D].

    Args:
        task: A checked task.

    Returns:
        One error per mistake; empty without a trace.
    """
    trace = task.trace
    if trace is None:
        return []
    found = [TaskFieldError("trace", reason) for reason in trace_problems(trace, task.prompt.tool_names)]
    found += [TaskFieldError("trace", reason) for reason in leak_reasons(trace, task.reference.answer)]
    called = [
        (call["name"], response)
        for turn in trace.turns
        for call, response in zip(turn.calls, turn.responses, strict=True)
    ]
    left = open_answers(called, task.reference.sub_answers)
    if left:
        answers = ", ".join(f"{answer.answer!r} of {answer.tool}" for answer in left)
        found.append(TaskFieldError("trace.turns", f"no response contains the expected {answers}"))
    solved = bool(task.reference.sub_answers) and not left
    found += _answer_mistakes(trace, task.reference.answer, called, solved)
    return found


def _answer_mistakes(
    trace: ExpertTrace, answer: str | None, called: list[tuple[str, str]], solved: bool
) -> Iterator[TaskFieldError]:
    """Find a trace that ends in another answer; one that finds every sub-answer need not end in any."""
    if answer is None:
        return
    if trace.final is not None:
        given = extract_answer(trace.final.answer)
        if not answers_match(given, answer):
            yield TaskFieldError(
                "trace.final.answer", f"is {shortened(given)}, but reference.answer is {shortened(answer)}"
            )
    elif called and not (
        solved or answer_in_response(answer, last := called[-1][1]) or response_is_answer(last, answer)
    ):
        problem = (
            f"there is no final answer, and the last response does not contain reference.answer {shortened(answer)}"
        )
        yield TaskFieldError("trace.turns", problem)


class CloseError(TaskFieldError):
    """Mistake in an environment's ``close``; rollouts go on after it as well, and count it."""


class EnvironmentChecks:
    """Check that tasks' environments can be made; each class and set of arguments is made once.

    Args:
        needs_reward: Whether they must have a method ``reward``.
        limit_s: Seconds after which only classes are tried that were not tried yet; ``None`` for no limit.

    Attributes:
        left_out: Tasks whose environment was not made for want of time.
    """

    def __init__(self, *, needs_reward: bool = False, limit_s: float | None = None) -> None:
        self.left_out = 0
        self._needs_reward = needs_reward
        self._until = None if limit_s is None else time.monotonic() + limit_s
        self._found: dict[str, TaskFieldError | None] = {}

    def mistake(self, task: Task) -> TaskFieldError | None:
        """Return the mistake that keeps a task's environment from being made; tasks that share it get the same object.

        A method ``close`` that fails is a :class:`CloseError`.
        """
        spec = task.prompt.environment
        key = f"{spec.class_path} {json.dumps(spec.init_args, sort_keys=True, default=repr)}"
        of_class = self._found.get(spec.class_path)
        if of_class is not None:
            return of_class
        if key not in self._found:
            if spec.class_path in self._found and self._until is not None and time.monotonic() > self._until:
                self.left_out += 1
                return None
            found = self._found[key] = self._made(task)
            is_of_class = found is not None and found.field == "environment.class_path"
            self._found[spec.class_path] = found if is_of_class and not isinstance(found, CloseError) else None
        return self._found[key]

    def _made(self, task: Task) -> TaskFieldError | None:
        spec = task.prompt.environment
        try:
            environment = spec.build()
        except ImportError as error:
            return TaskFieldError("environment.class_path", str(error))
        except FAILURES as error:
            problem = f"the environment of task {task.id!r} cannot be created: {named_failure(error)}"
            return TaskFieldError("environment.init_args", problem)
        if self._needs_reward and not callable(getattr(environment, "reward", None)):
            problem = (
                f"data.credit.reward is `environment`, but {spec.class_path} has no method reward(); give it one, or "
                "choose another reward"
            )
            return TaskFieldError("environment.class_path", problem)
        try:
            close_environment(environment)
        except FAILURES as error:
            return CloseError(
                "environment.class_path", f"close() of the environment {spec.class_path} failed: {named_failure(error)}"
            )
        return None


def located(task: Task, error: TaskFieldError) -> ValueError:
    """Return a mistake with the place of its task, where that is known."""
    if task.place is None:
        return error
    return TaskFileError(task.place.path, task.place.line, error.problem, error.field, unit=task.place.unit)


def replay_mistakes(task: Task, timeout_s: float = 30.0) -> list[TaskFieldError]:
    """Make the trace's calls in the environment and compare the responses, as verification does.

    Args:
        task: A task whose environment can be made.
        timeout_s: Seconds that a call may take.

    Returns:
        One error per response that differs; empty without a trace.

    Raises:
        ValueError: The sandbox does not work on this machine.
    """
    turns = () if task.trace is None else task.trace.turns
    places = [(turn, number) for turn in range(len(turns)) for number in range(len(turns[turn].calls))]
    if not places:
        return []
    calls = [turns[turn].calls[number] for turn, number in places]
    try:
        replay = replay_calls(task.prompt, calls, timeout_s=timeout_s)
    except EnvironmentFailedError as error:
        return [TaskFieldError("environment", str(error))]
    except SandboxError as error:
        raise ValueError(f"{error}; skip the replay with --replay false") from error
    found = []
    for (turn, number), result in zip(places, replay.results, strict=True):
        if same_response(turns[turn].responses[number], result.text) == "differs":
            recorded, given = differing(turns[turn].responses[number], result.text)
            problem = f"is {recorded}, but the tool gives {given}"
            found.append(TaskFieldError(f"trace.turns[{turn}].responses[{number}]", problem))
    return found

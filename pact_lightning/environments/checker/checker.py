"""Check of an environment before training: verbs, schemas, every tool, repeatability, time limits."""

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pact_lightning.environments.checker.findings import (
    CONTROL_TEXT,
    Finding,
    check_control_text,
    check_refused,
    check_result,
    check_same,
    error,
    shown,
    warning,
    without_repeats,
)
from pact_lightning.environments.checker.schemas import WORD, bad_arguments, check_schemas, good_arguments
from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.environments.tool_calls import ToolThreads, ToolTimeoutError
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import failure_reason, named_failure

NO_TASK = PromptView("check", ({"role": "user", "content": ""},), (), EnvironmentSpec("check.Environment"))
"""Prompt that ``reset`` gets if there is no task."""

ALL_FAILED = "every call that its schema allows failed"
_TRL_HINT = "a class in TRL's style goes through pact_lightning.TRLEnvironment"
_Call = tuple[str, Mapping[str, Any]]


def check_environment(
    env: Environment,
    task: Task | PromptView | None = None,
    *,
    seed: int = 0,
    limit_s: float = 10.0,
    another: Callable[[], Environment] | None = None,
) -> list[Finding]:
    """Run an environment through everything that a rollout may do to it.

    - Its verbs and its schemas.
    - Every tool, with arguments that its schema allows (made from the schema, and the task's reference calls), with
      arguments that it forbids, and with control tokens in its texts.
    - The same calls after a second ``reset`` with the same seed.
    - ``reward()`` and ``close()``, if it has them.
    - A time limit for each of these.

    The tools really run, with made-up arguments: pass an environment on which that does no harm. It is closed at the
    end.

    Args:
        env: The environment.
        task: Task to reset it with, whose tools it must have; ``None`` if ``reset`` ignores its task.
        seed: Seed to reset it with.
        limit_s: Time limit of each verb, in seconds.
        another: Factory of a second environment, whose answers must equal those of ``env``: every rollout has its own.

    Returns:
        Mistakes and how to mend them, errors first; an empty list if there are none.
    """
    return without_repeats(_Check(env, task, seed, limit_s).run(another))


class _Stop(Exception):  # noqa: N818  # no error: it ends the check, whose findings say why
    """End of a check that cannot go on."""


class _Check:
    def __init__(self, env: Any, task: Task | PromptView | None, seed: int, limit_s: float) -> None:
        self.env = env
        self.prompt = task.prompt if isinstance(task, Task) else task
        self.calls: list[_Call] = []
        if isinstance(task, Task):
            self.calls = [(call["name"], call["arguments"]) for call in task.reference.calls]
        self.seed = seed
        self.limit_s = limit_s
        self.threads = ToolThreads(1, limit_s)
        self.busy = threading.Lock()
        self.findings: list[Finding] = []

    def run(self, another: Callable[[], Environment] | None) -> list[Finding]:
        try:
            self._verbs(self.env)
            self._reset(self.env)
            tools = self._tools()
            self.findings += _failed_references(self._play(self.env, self.calls))
            for tool in tools:
                self._check_tool(tool["function"]["name"], tool["function"]["parameters"])
            self._check_unknown_tool()
            self._check_repeats(another)
            self._check_reward()
            self._verb(self.env, "close")
        except _Stop:
            pass
        return self.findings

    def _verbs(self, env: Any) -> None:
        for verb in ("tools", "reset", "call"):
            if not hasattr(type(env), verb) and not hasattr(env, verb):
                self._stop(error(verb, "the environment does not have it", f"see docs/your_tools.md; {_TRL_HINT}"))

    def _stop(self, finding: Finding) -> None:
        self.findings.append(finding)
        raise _Stop

    def _timed(self, where: str, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Run a verb under the limit and return its value and what it raised; a verb that hangs ends the check."""
        future = self.threads.submit(self.busy, [function])[0]
        problem = future.exception()
        if isinstance(problem, ToolTimeoutError):
            limit = f"{self.limit_s:g} seconds"
            self._stop(
                error(where, f"it took longer than {limit}; the check ends here", "give what it waits for a limit")
            )
        if problem is None:
            return future.result(), None
        if not isinstance(problem, Exception):  # sys.exit() and its like
            problem = RuntimeError(f"{type(problem).__name__}: {problem}")
        return None, problem

    def _verb(self, env: Any, verb: str, *arguments: Any) -> Any:
        """Run a verb that must not raise, if the environment has it."""
        function = getattr(env, verb, None)
        if not callable(function):
            return None
        value, raised = self._timed(f"{verb}()", lambda: function(*arguments))
        if raised is not None:
            said = f"it raised {named_failure(raised)}"
            self._stop(error(f"{verb}()", said, "let it work with the task and the arguments given"))
        return value

    def _reset(self, env: Any) -> None:
        self._verb(env, "reset", self.prompt or NO_TASK, self.seed)

    def _tools(self) -> list[Any]:
        """Return the tools whose schemas have no error."""
        offered, raised = self._timed("tools", lambda: list(self.env.tools))
        if raised is not None:
            self._stop(
                error("tools", f"it raised {named_failure(raised)}", "return a list of schemas in OpenAI format")
            )
        found = check_schemas(offered)
        self.findings += found
        self.findings += _task_tools(self.prompt, offered)
        broken = {finding.where for finding in found if finding.severity == "error"}
        whole = [tool for index, tool in enumerate(offered) if f"tools[{index}]" not in broken]
        return [tool for tool in whole if tool["function"]["name"] not in broken]

    def _call(self, env: Any, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one call and check its answer; an unusable answer becomes an empty error."""
        said = _written(name, arguments)
        result, raised = self._timed(name, lambda: env.call(name, arguments))
        if raised is not None:
            remedy = "catch it and return ToolResult(what is wrong, error=True)"
            self.findings.append(error(name, f"{said} raised {named_failure(raised)}", remedy))
            return ToolResult(failure_reason(raised), error=True)
        self.findings += check_result(name, said, result)
        usable = isinstance(result, ToolResult) and isinstance(result.text, str)
        return result if usable else ToolResult("", error=True)

    def _play(self, env: Any, calls: Sequence[_Call]) -> list[tuple[_Call, ToolResult]]:
        return [((name, arguments), self._call(env, name, arguments)) for name, arguments in calls]

    def _check_tool(self, name: str, parameters: Mapping[str, Any]) -> None:
        good = list(good_arguments(parameters))
        good += [dict(arguments) for called, arguments in self.calls if called == name and arguments not in good]
        if not good:
            remedy = "give its arguments `examples` in the schema, or a task whose reference calls it"
            self.findings.append(warning(name, "no arguments could be made up from its schema", remedy))
            return
        answers = [self._call(self.env, name, arguments) for arguments in good]
        if all(answer.error for answer in answers):
            problem = f"{ALL_FAILED}, the last one with {shown(answers[-1].text)}"
            remedy = "mend the tool; or show calls that work, by `examples` in the schema or a task's reference calls"
            self.findings.append(warning(name, problem, remedy))
        for bad in bad_arguments(parameters, good[-1]):
            result = self._call(self.env, name, bad.arguments)
            if bad.forbidden:
                self.findings += check_refused(name, bad.what, result, must=False)
        for arguments in list(good_arguments(parameters, CONTROL_TEXT))[-1:]:
            plain = self._call(self.env, name, good[-1])
            control = self._call(self.env, name, arguments)
            self.findings += check_control_text(name, plain, control, WORD)
        self.calls += [(name, arguments) for arguments in good if (name, arguments) not in self.calls]

    def _check_unknown_tool(self) -> None:
        result = self._call(self.env, "no_such_tool", {})
        self.findings += check_refused("call()", "of a tool that does not exist", result, must=True)

    def _check_repeats(self, another: Callable[[], Environment] | None) -> None:
        """Repeat the calls after two resets, and in a second environment."""
        self._reset(self.env)
        first = self._play(self.env, self.calls)
        self._reset(self.env)
        self._compare(first, self._play(self.env, self.calls), "after reset() with the same task and seed")
        if another is not None:
            second = another()
            self._reset(second)
            self._compare(first, self._play(second, self.calls), "in a second environment with the same task and seed")
            self._verb(second, "close")

    def _compare(self, first: Iterable[Any], second: Iterable[Any], how: str) -> None:
        for ((name, arguments), one), (_, other) in zip(first, second, strict=True):
            self.findings += check_same(name, _written(name, arguments), one, other, how)

    def _check_reward(self) -> None:
        if not callable(getattr(self.env, "reward", None)):
            return
        value = self._verb(self.env, "reward")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.findings.append(error("reward()", f"it gave {shown(value)}", "return a finite number"))


def _written(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({json.dumps(arguments, ensure_ascii=False):.200})"


def _failed_references(played: Iterable[tuple[_Call, ToolResult]]) -> list[Finding]:
    return [
        warning(name, f"the task's reference call was answered by the error {shown(result.text)}", "mend call or tool")
        for (name, _), result in played
        if result.error
    ]


def _task_tools(prompt: PromptView | None, offered: Sequence[Any]) -> list[Finding]:
    """Check that the environment has the task's tools, described in the same words."""
    if prompt is None:
        return []
    own = {tool["function"]["name"]: tool for tool in offered if isinstance(tool, Mapping) and "function" in tool}
    findings = []
    for tool in prompt.tools:
        name = tool["function"]["name"]
        if name not in own:
            findings.append(error(name, "the task lists it, and the environment does not", "list what there is"))
        elif dict(own[name]) != dict(tool):
            problem = "the task describes it in other words than the environment"
            findings.append(warning(name, problem, "leave `tools` out of the task, or list the environment's own"))
    return findings

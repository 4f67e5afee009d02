"""Checks an environment of one's own before anything is trained on it."""

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
from pact_lightning.environments.tool_output import failure_reason
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task

NO_TASK = PromptView("check", ({"role": "user", "content": ""},), (), EnvironmentSpec("check.Environment"))
"""What ``reset`` gets where there is no task."""

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
    """Runs an environment through everything that a rollout may do to it.

    Its verbs; its schemas; every tool with arguments that its schema allows (made from the schema, and the task's
    reference calls) and with such that it forbids; the same calls after a second ``reset`` with the same seed; a time
    limit for each call; texts with control tokens in them; ``reward()`` and ``close()`` where there are such. The
    tools really run, with made-up arguments: give an environment whose tools may be played with. It is closed at the
    end.

    Args:
        env: The environment.
        task: The task to reset it with, and whose tools it has to have; none is needed where ``reset`` ignores it.
        seed: The seed to reset it with.
        limit_s: Seconds that any verb may take.
        another: Makes a second environment of the kind, whose answers must be those of ``env``: every rollout has one
            of its own.

    Returns:
        What is wrong and how to mend it, errors first; empty if nothing is.
    """
    return without_repeats(_Check(env, task, seed, limit_s).run(another))


class _Stop(Exception):  # noqa: N818  # no error: it ends the check, whose findings say why
    """Nothing further can be found out."""


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
            reference = self._play(self.env, self.calls)
            self.findings += _failed_references(reference)
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

    def _timed(self, where: str, function: Callable[[], Any]) -> Any:
        """Runs a verb under the limit; after a call that hangs there is nothing more to be had."""
        future = self.threads.submit(self.busy, [function])[0]
        problem = future.exception()
        if isinstance(problem, ToolTimeoutError):
            limit = f"{self.limit_s:g} seconds"
            self._stop(
                error(where, f"it took longer than {limit}; the check ends here", "give what it waits for a limit")
            )
        if isinstance(problem, Exception):
            raise problem
        if problem is not None:  # sys.exit() and its like must not end the check
            raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem
        return future.result()

    def _verb(self, env: Any, verb: str, *arguments: Any) -> Any:
        """Runs a verb that must not raise, where the environment has it."""
        function = getattr(env, verb, None)
        if not callable(function):
            return None
        where = f"{verb}()"
        try:
            return self._timed(where, lambda: function(*arguments))
        except _Stop:
            raise
        except Exception as problem:  # noqa: BLE001  # the user's code: whatever it raises is what was looked for
            said = f"it raised {type(problem).__name__}: {failure_reason(problem)}"
            self._stop(error(where, said, "let it work with the task and the arguments given"))

    def _reset(self, env: Any) -> None:
        self._verb(env, "reset", self.prompt or NO_TASK, self.seed)

    def _tools(self) -> list[Any]:
        """The tools whose schemas can be worked with."""
        try:
            offered = self._timed("tools", lambda: list(self.env.tools))
        except _Stop:
            raise
        except Exception as problem:  # noqa: BLE001  # as above
            said = f"it raised {type(problem).__name__}: {failure_reason(problem)}"
            self._stop(error("tools", said, "return a list of schemas in OpenAI format"))
        found = check_schemas(offered)
        self.findings += found
        self.findings += _task_tools(self.prompt, offered)
        broken = {finding.where for finding in found if finding.severity == "error"}
        whole = [entry for entry in enumerate(offered) if f"tools[{entry[0]}]" not in broken]
        return [tool for _, tool in whole if tool["function"]["name"] not in broken]

    def _call(self, env: Any, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """One call, its answer checked; what cannot be used is an empty error from here on."""
        said = f"{name}({json.dumps(arguments, ensure_ascii=False):.200})"
        try:
            result = self._timed(name, lambda: env.call(name, arguments))
        except _Stop:
            raise
        except Exception as problem:  # noqa: BLE001  # as above
            raised = f"{said} raised {type(problem).__name__}: {failure_reason(problem)}"
            self.findings.append(error(name, raised, "catch it and return ToolResult(what is wrong, error=True)"))
            return ToolResult(str(problem), error=True)
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
        """The same calls after a reset, twice, and in a second environment."""
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
            said = f"{name}({json.dumps(arguments, ensure_ascii=False):.200})"
            self.findings += check_same(name, said, one, other, how)

    def _check_reward(self) -> None:
        if not callable(getattr(self.env, "reward", None)):
            return
        value = self._verb(self.env, "reward")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.findings.append(error("reward()", f"it gave {shown(value)}", "return a finite number"))


def _failed_references(played: Iterable[tuple[_Call, ToolResult]]) -> list[Finding]:
    return [
        warning(name, f"the task's reference call was answered by the error {shown(result.text)}", "mend call or tool")
        for (name, _), result in played
        if result.error
    ]


def _task_tools(prompt: PromptView | None, offered: Sequence[Any]) -> list[Finding]:
    """Tools of the task that the environment lacks, or describes in other words."""
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

"""Check of an environment before training: verbs, schemas, every tool, repeatability, time limits."""

import copy
import json
import math
import numbers
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pact_lightning.environments.checker.arguments import WORD, bad_arguments, good_arguments
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
from pact_lightning.environments.checker.schemas import check_schemas, check_task_tools
from pact_lightning.environments.mcp.environment import MCPEnvironment
from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.environments.tool_calls import ToolThreads, ToolTimeoutError, has_verb
from pact_lightning.environments.tool_output import plain_result
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import failure_reason, named_failure

NO_TASK = PromptView("check", ({"role": "user", "content": ""},), (), EnvironmentSpec("check.Environment"))
"""Prompt that ``reset`` gets if there is no task."""

ALL_FAILED = "every call that its schema allows failed"
_TRL_HINT = "a class in TRL's style goes through pact_lightning.TRLEnvironment"
_SAME = "let answers depend on task, seed and calls alone; draw from the seed of reset()"
_SAME_SERVER = (
    "the server keeps what it did beyond the rollout: give it a folder or a key of its own by {rollout} in `env`, "
    "`args` or `fixed_arguments`, or hide what differs by `result_field` (docs/your_mcp_server.md)"
)


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: Mapping[str, Any]
    invented: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        said = f"{self.name}({json.dumps(self.arguments, ensure_ascii=False):.200})"
        return f"{said} ({_listed(self.invented)} made up by the check)" if self.invented else said


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


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
            self.calls = [_Call(call["name"], call["arguments"]) for call in task.reference.calls]
        self.worked: set[str] = set()  # tools of which a call was answered without an error
        self.seed = seed
        self.limit_s = limit_s
        self.threads = ToolThreads(1, limit_s)
        self.busy = threading.Lock()
        self.findings: list[Finding] = []
        self.remedy = _SAME_SERVER if isinstance(env, MCPEnvironment) else _SAME

    def run(self, another: Callable[[], Environment] | None) -> list[Finding]:
        try:
            self._verbs(self.env)
            self._reset(self.env)
            tools = self._tools()
            self.findings += _failed_references(self.calls, self._play(self.env, self.calls))
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

    def _timed(
        self, where: str, function: Callable[[], Any], remedy: str = "give what it waits for a limit"
    ) -> tuple[Any, BaseException | None]:
        """Run a verb under the limit and return its value and what it raised; a verb that hangs ends the check."""
        future = self.threads.submit(self.busy, [function])[0]
        problem = future.exception()
        if isinstance(problem, ToolTimeoutError):
            limit = f"{self.limit_s:g} seconds"
            self._stop(error(where, f"it took longer than {limit}; the check ends here", remedy))
        return (future.result(), None) if problem is None else (None, problem)

    def _verb(self, env: Any, verb: str, *arguments: Any) -> Any:
        """Run a verb that must not raise, if the environment has it."""
        if not has_verb(env, verb):
            return None
        value, raised = self._timed(f"{verb}()", lambda: getattr(env, verb)(*arguments))
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
        found, raised = self._timed("tools", lambda: check_schemas(offered))
        if raised is not None:
            self._stop(error("tools", f"reading them raised {named_failure(raised)}", "return lists and dictionaries"))
        self.findings += found
        self.findings += [] if self.prompt is None else check_task_tools(self.prompt.tools, offered)
        broken = {finding.where for finding in found if finding.severity == "error"}
        whole = [tool for index, tool in enumerate(offered) if f"tools[{index}]" not in broken]
        return [tool for tool in whole if tool["function"]["name"] not in broken]

    def _call(self, env: Any, call: _Call) -> ToolResult:
        """Run one call and check its answer; an unusable answer becomes an empty error."""
        name = call.name
        # A copy, as in a rollout: a tool may change its arguments.
        result, raised = self._timed(name, lambda: env.call(name, copy.deepcopy(call.arguments)))
        if raised is not None:
            remedy = "catch it and return ToolResult(what is wrong, error=True)"
            self.findings.append(error(name, f"{call} raised {named_failure(raised)}", remedy))
            return ToolResult(failure_reason(raised), error=True)
        try:
            plain = plain_result(result)
        except TypeError as problem:
            self.findings.append(error(name, f"{call}: {problem}", "return a ToolResult with a str and a bool"))
            return ToolResult("", error=True)
        self.findings += check_result(name, str(call), result)
        if not plain.error:
            self.worked.add(name)
        return plain

    def _play(self, env: Any, calls: Sequence[_Call]) -> list[ToolResult]:
        return [self._call(env, call) for call in calls]

    def _check_tool(self, name: str, parameters: Mapping[str, Any]) -> None:
        schema, simpler = f"{name}'s schema", "it allows too many things at once: write a simpler one"
        made, _ = self._timed(schema, lambda: list(good_arguments(parameters)), simpler)
        good = [_Call(name, one.arguments, one.invented) for one in made or ()]
        good += [call for call in self.calls if call.name == name and call not in good]
        if not good:
            remedy = "give its arguments `examples` in the schema, or a task whose reference calls it"
            self.findings.append(warning(name, "no arguments could be made up from its schema", remedy))
            return
        answer = self._play(self.env, good)[-1]
        for call in good:  # the calls before may have used up what this one needs
            if name not in self.worked:
                self._reset(self.env)
                answer = self._call(self.env, call)
        if name not in self.worked:
            invented = tuple(dict.fromkeys(argument for call in good for argument in call.invented))
            problem = f"{ALL_FAILED}, each also as the first one after a reset, the last one with {shown(answer.text)}"
            problem += f"; {_listed(invented)} made up by the check" if invented else ""
            remedy = "show calls that work, by `examples` in the schema or a task's reference calls; or mend the tool"
            self.findings.append(warning(name, problem, remedy))
        wrong, _ = self._timed(schema, lambda: list(bad_arguments(parameters, good[-1].arguments)), simpler)
        for bad in wrong or ():
            result = self._call(self.env, _Call(name, bad.arguments))
            if bad.forbidden:
                self.findings += check_refused(name, bad.what, result, must=False)
        control, _ = self._timed(schema, lambda: list(good_arguments(parameters, CONTROL_TEXT))[-1:], simpler)
        for one in control or ():
            plain = self._call(self.env, good[-1])
            answer = self._call(self.env, _Call(name, one.arguments, one.invented))
            self.findings += check_control_text(name, plain, answer, WORD)
        self.calls += [call for call in good if call not in self.calls]

    def _check_unknown_tool(self) -> None:
        result = self._call(self.env, _Call("no_such_tool", {}))
        self.findings += check_refused("call()", "of a tool that does not exist", result, must=True)

    def _check_repeats(self, another: Callable[[], Environment] | None) -> None:
        """Repeat the calls after two resets, and in a second environment."""
        self._reset(self.env)
        first = self._play(self.env, self.calls)
        self._reset(self.env)
        self._compare(first, self._play(self.env, self.calls), "after reset() with the same task and seed")
        if another is not None:
            second, raised = self._timed("the class", another)
            if raised is not None:
                said = f"a second environment cannot be made: {named_failure(raised)}"
                self._stop(error("the class", said, "every rollout has an environment of its own: let many be made"))
            self._reset(second)
            self._compare(first, self._play(second, self.calls), "in a second environment with the same task and seed")
            self._verb(second, "close")

    def _compare(self, first: Sequence[ToolResult], second: Sequence[ToolResult], how: str) -> None:
        calls = [(call.name, str(call)) for call in self.calls]
        self.findings += check_same(calls, first, second, how, self.remedy)

    def _check_reward(self) -> None:
        if not has_verb(self.env, "reward"):
            return
        value = self._verb(self.env, "reward")
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            self.findings.append(error("reward()", f"it gave {shown(value)}", "return a finite number"))


def _failed_references(calls: Iterable[_Call], results: Iterable[ToolResult]) -> list[Finding]:
    remedy = "mend call or tool"
    return [
        warning(call.name, f"the task's reference call was answered by the error {shown(result.text)}", remedy)
        for call, result in zip(calls, results, strict=True)
        if result.error
    ]

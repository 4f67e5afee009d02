"""The check of an environment: what is right passes, and every mistake is found, by name and with a remedy."""

import functools
import itertools
import math
import random
import sys
import time

import pytest

from pact_lightning.environments.checker.checker import check_environment
from pact_lightning.environments.functions import FunctionEnvironment
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, Task


def schema(name, properties=None, required=(), **more):
    parameters = {"type": "object", "properties": properties or {}, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "description": "Does.", "parameters": parameters}}


TEXT = {"type": "string", "description": "A text."}


class Good:
    """An environment of two tools without a mistake."""

    def __init__(self):
        self.random = random.Random()
        self.closed = False

    @property
    def tools(self):
        return [schema("echo", {"text": TEXT}, ["text"]), schema("dice")]

    def reset(self, task, seed):
        self.random.seed(seed)

    def call(self, name, arguments):
        tools = {"echo": ["text"], "dice": []}
        if name not in tools or sorted(arguments) != tools[name]:
            return ToolResult("wrong call", error=True)
        if name == "dice":
            return ToolResult(str(self.random.randint(1, 6)))
        if not isinstance(arguments["text"], str):
            return ToolResult("text must be a string", error=True)
        return self.echo(arguments["text"])

    def echo(self, text):
        return ToolResult(f"you said {text}")

    def close(self):
        self.closed = True


def test_an_environment_without_mistakes_has_no_findings_and_is_closed():
    environment = Good()
    assert check_environment(environment, another=Good) == []
    assert environment.closed


def test_the_bundled_world_and_its_reference_calls_pass():
    for task in BundledTasks(split="test", count=2).load():
        build = task.prompt.environment.build
        assert [f for f in check_environment(build(), task, another=build) if f.severity == "error"] == []


def with_echo(function):
    """Good, but for what ``echo`` does with its text."""

    class Changed(Good):
        def echo(self, text):
            return function(self, text)

    return Changed


def with_(**members):
    return type("Changed", (Good,), members)


COUNT = itertools.count()

MISTAKES = [
    ("a bare string", with_echo(lambda self, text: text), "echo", "error", "returned a str"),
    ("None", with_echo(lambda self, text: None), "echo", "error", "returned a NoneType"),
    ("a number as text", with_echo(lambda self, text: ToolResult(3)), "echo", "error", "with the text '3'"),
    ("an empty error", with_echo(lambda self, text: ToolResult("", error=True)), "echo", "error", "without a text"),
    ("an empty text", with_echo(lambda self, text: ToolResult(" ")), "echo", "warning", "an empty text"),
    ("a huge text", with_echo(lambda self, text: ToolResult("a" * 50_000)), "echo", "warning", "50,000 characters"),
    ("half a surrogate", with_echo(lambda self, text: ToolResult("\ud83d")), "echo", "warning", "surrogate"),
    ("a traceback", with_echo(lambda self, text: ToolResult("Traceback (most recent call last):", error=True)),
     "echo", "error", "traceback"),
    ("an exception", with_echo(lambda self, text: 1 / 0), "echo", "error", "raised ZeroDivisionError"),
    ("sys.exit", with_echo(lambda self, text: sys.exit(3)), "echo", "error", "SystemExit: 3"),
    ("chance", with_echo(lambda self, text: ToolResult(str(random.random()))), "echo", "error", "after reset()"),
    ("a counter", with_echo(lambda self, text: ToolResult(str(next(COUNT)))), "echo", "error", "second environment"),
    ("escapes", with_echo(lambda self, text: ToolResult(text.replace("<", "&lt;"))), "echo", "warning", "control tok"),
    ("always an error", with_echo(lambda self, text: ToolResult("no", error=True)), "echo", "warning", "every call"),
    ("takes anything", with_(call=lambda self, name, arguments: ToolResult("fine")), "call()", "error",
     "that does not exist was answered 'fine'"),
    ("takes wrong types", with_(call=lambda self, name, arguments: ToolResult("fine")), "echo", "warning",
     "text of another type was answered"),
    ("takes too few", with_(call=lambda self, name, arguments: ToolResult("fine")), "echo", "warning",
     "without the required argument text"),
    ("raises for wrong arguments", with_(call=lambda self, name, arguments: ToolResult(arguments["text"])),
     "dice", "error", "raised KeyError"),
    ("reset fails", with_(reset=lambda self, task, seed: 1 / 0), "reset()", "error", "ZeroDivisionError"),
    ("reset takes no seed", with_(reset=lambda self, task: None), "reset()", "error", "TypeError"),
    ("no tools", with_(tools=[]), "tools", "error", "there are none"),
    ("tools fail", with_(tools=property(lambda self: 1 / 0)), "tools", "error", "ZeroDivisionError"),
    ("two of one name", with_(tools=[schema("dice"), schema("dice")]), "dice", "error", "2 tools have this name"),
    ("endless reward", with_(reward=lambda self: math.inf), "reward()", "error", "gave 'inf'"),
    ("reward is text", with_(reward=lambda self: "1"), "reward()", "error", "gave '1'"),
    ("reward fails", with_(reward=lambda self: 1 / 0), "reward()", "error", "ZeroDivisionError"),
    ("close fails", with_(close=lambda self: 1 / 0), "close()", "error", "ZeroDivisionError"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "severity", "said"), [m[2:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_are_found(request, where, severity, said):
    make = next(m[1] for m in MISTAKES if m[0] == request.node.callspec.id)
    findings = check_environment(make(), another=make)
    found = [f for f in findings if f.where == where and f.severity == severity and said in f.problem]
    assert found, findings
    assert all(finding.remedy for finding in findings)
    assert [f.severity for f in findings] == sorted((f.severity for f in findings), key=["error", "warning"].index)


def test_a_call_that_hangs_ends_the_check():
    hangs = with_echo(lambda self, text: time.sleep(60))
    findings = check_environment(hangs(), limit_s=1.0)
    assert [(f.where, f.severity) for f in findings] == [("echo", "error")]
    assert "longer than 1 seconds" in findings[0].problem


@pytest.mark.parametrize("verb", ["tools", "reset", "call"])
def test_missing_verbs_are_named(verb):
    members = {name: getattr(Good, name) for name in ("tools", "reset", "call") if name != verb}
    findings = check_environment(type("Incomplete", (), members)())
    assert [(f.where, f.severity) for f in findings] == [(verb, "error")]
    assert "TRLEnvironment" in findings[0].remedy


def task(calls=(), tools=()):
    spec = EnvironmentSpec(f"{__name__}.Good")
    prompt = PromptView("t", ({"role": "user", "content": "Go."},), tuple(tools), spec)
    return Task(prompt, Reference(calls=tuple(calls)))


def test_a_task_s_tools_and_calls_are_checked_too():
    offered = Good().tools
    calls = [{"name": "echo", "arguments": {"text": "a"}}]
    assert check_environment(Good(), task(calls, offered)) == []
    wrong = [{"name": "echo", "arguments": {"words": "a"}}]
    other = {**offered[1], "function": {**offered[1]["function"], "description": "Rolls."}}
    findings = check_environment(Good(), task(wrong, [offered[0], other, schema("fly")]))
    problems = {(f.where, f.severity): f.problem for f in findings}
    assert "the environment does not" in problems["fly", "error"]
    assert "in other words" in problems["dice", "warning"]
    assert "reference call was answered by the error 'wrong call'" in problems["echo", "warning"]


def shout(text: str, times: int = 1) -> str:
    """Shouts.

    Args:
        text: What.
        times: How often.
    """
    return text.upper() * times


def once(text: str) -> str:
    """Says something, once.

    Args:
        text: What.
    """
    return remembered(text, next(COUNT))


@functools.cache
def remembered(text, count):
    return f"{text} {count}"


def test_functions_pass_unless_they_keep_a_state():
    assert check_environment(FunctionEnvironment([shout]), another=lambda: FunctionEnvironment([shout])) == []
    assert {f.where for f in check_environment(FunctionEnvironment([shout, once]))} == {"once"}

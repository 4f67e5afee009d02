"""The check of an environment: what is right passes, and every mistake is found, by name and with a remedy."""

import functools
import itertools
import math
import random
import re
import sys
import time

import numpy as np
import pytest

from pact_lightning.environments.checker.bounded import allows
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
    ("a bare string", with_echo(lambda self, text: text), "echo", "error", "not a str"),
    ("None", with_echo(lambda self, text: None), "echo", "error", "not a NoneType"),
    ("a number as text", with_echo(lambda self, text: ToolResult(3)), "echo", "error", "not one with a int"),
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


class Once(Good):
    """Each tool works once after a reset, and only if nothing came before it."""

    @property
    def tools(self):
        return [schema("take", {"text": TEXT}, ["text"]), schema("leave"), schema("enter")]

    def reset(self, task, seed):
        self.used = False

    def call(self, name, arguments):
        forms = {"take": [["text"]], "leave": [[]], "enter": [[]]}
        if sorted(arguments) not in forms.get(name, ()) or not all(type(v) is str for v in arguments.values()):
            return ToolResult("wrong call", error=True)
        used, self.used = self.used, True
        return ToolResult("nothing is left", error=True) if used else ToolResult("done")


def test_what_a_check_uses_up_itself_is_no_mistake_of_the_tools():
    assert check_environment(Once(), another=Once) == []
    assert check_environment(Once(), task([{"name": "leave", "arguments": {}}], Once().tools), another=Once) == []


def test_arguments_that_the_check_made_up_are_named():
    how = {"enum": ["a"], "description": "How."}
    tools = [schema("echo", {"text": TEXT, "how": how}, ["text", "how"])]
    never = with_(tools=tools, call=lambda self, name, arguments: ToolResult("no", error=True))
    (finding,) = check_environment(never())
    assert finding.problem.endswith("the last one with 'no'; text is generated by the check")
    given = {**TEXT, "examples": ["pen"]}
    (finding,) = check_environment(with_(tools=[schema("echo", {"text": given}, ["text"])], call=never.call)())
    assert "made up" not in finding.problem
    raises = check_environment(with_echo(lambda self, text: 1 / 0)())
    assert 'echo({"text": "zephyr"}) (text is generated by the check) raised ZeroDivisionError' in raises[0].problem


def test_two_answers_are_shown_where_they_differ():
    start = "All is well and nothing has happened since. " * 20
    long = with_echo(lambda self, text: ToolResult(f"{start}{next(COUNT)} times"))
    found = [f for f in check_environment(long(), another=long) if "times" in f.problem]
    assert len(found) == 2, "one per way to repeat the calls"
    for finding in found:
        one, other = re.findall(r"since\. (\d+) times", finding.problem)
        assert one != other


def test_after_one_difference_the_others_are_counted():
    class Drifts(Good):
        def call(self, name, arguments):
            result = super().call(name, arguments)
            return result if result.error else ToolResult(f"{result.text} {next(COUNT)}")

    findings = [f for f in check_environment(Drifts()) if f.severity == "error"]
    assert len(findings) == 1
    assert findings[0].problem.endswith("; 2 of 2 calls differ, of echo, dice")


class MuteError(Exception):
    def __str__(self):
        raise SystemExit(3)


class Mute:
    __str__ = __repr__ = MuteError.__str__


def mute(*_):
    raise MuteError


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"echo": lambda self, text: mute()}, "raised MuteError"),
        ({"echo": lambda self, text: ToolResult("x", error=np.ones(2))}, "`error` of a ToolResult must be True"),
        ({"reset": mute}, "it raised MuteError"),
        ({"close": mute}, "it raised MuteError"),
        ({"reward": property(mute)}, "it raised MuteError"),
        ({"reward": lambda self: Mute()}, "it gave 'a Mute'"),
        ({"tools": property(mute)}, "it raised MuteError"),
        ({"tools": [{"type": "function", "function": 3}]}, "is not a tool in OpenAI format"),
        ({"tools": [{"type": "function", "function": {}}]}, "is not a tool in OpenAI format"),
    ],
)  # fmt: skip
def test_odd_members_are_findings(members, said):
    wanted = task(tools=[schema("echo", {"text": TEXT}, ["text"])])
    findings = check_environment(with_(**members)(), wanted)
    assert [f for f in findings if said in f.problem], findings


def test_a_tool_that_changes_its_arguments_changes_no_later_call():
    clears = with_(call=lambda self, name, arguments: (Good.call(self, name, arguments), arguments.clear())[0])
    assert check_environment(clears(), another=clears) == []
    assert check_environment(with_echo(lambda self, text: ToolResult(text, error=np.bool_(False)))()) == []


def test_a_second_environment_that_cannot_be_made_is_a_finding():
    (finding,) = check_environment(Good(), another=mute)
    assert finding.problem == "a second environment cannot be created: MuteError"


def endless():
    """Three ways at each of thirty steps, none of which leads anywhere."""
    steps = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 3} for n in range(30)}
    return steps | {"a30": {"type": "integer", "minimum": 1, "maximum": 0}}


def test_a_schema_that_takes_for_ever_is_given_up():
    """Else its thread would go on, and take memory, behind the end of the check."""
    assert allows({"$ref": "#/$defs/a0", "$defs": endless()}, 1) is None
    assert allows({"$ref": "#/$defs/a30", "$defs": endless()}, 1) is False


def test_a_schema_that_takes_for_ever_ends_the_check():
    tools = [schema("echo", {"text": {"$ref": "#/$defs/a0", "description": "A."}}, ["text"], **{"$defs": endless()})]
    (finding,) = check_environment(with_(tools=tools)(), limit_s=0.5)
    assert (finding.where, finding.severity) == ("echo's schema", "error")


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
    assert "describe it differently" in problems["dice", "warning"]
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

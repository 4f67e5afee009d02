"""A mistake in a task file ends `tasks validate` and `fit` in the same sentence, before a policy is loaded."""

import copy
import json
import sys

import pytest
from cli_recipe import saved

import pact_lightning.training.policy_module
from pact_lightning.cli.main import main
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.record import task_to_json
from pact_lightning.types.task import Task

MODULES = {
    "raising_env": "raise RuntimeError('no licence')",
    "leaving_env": "import sys\nsys.exit()",
    "broken_env": "def (:",
    "plain_env": """
class Env:
    def __init__(self, number=1):
        if number == 7:
            raise KeyError("seven")
        if number == 8:
            raise SystemExit(3)
    tools = ()
    def reset(self, task, seed): ...
    def call(self, name, arguments): ...

class NoReset:
    def call(self, name, arguments): ...
""",
}
GOOD = task_to_json(make_task("train", 1))
USER = {"role": "user", "content": "c"}
SYSTEM = {"role": "system", "content": "a"}


def with_parameters(parameters):
    tools = copy.deepcopy(GOOD["tools"])
    tools[1]["function"]["parameters"] = parameters
    return {"tools": tools}


def environment(class_path, **init_args):
    return {"environment": {"class_path": class_path, "init_args": init_args}}


def snippets(code):
    names = [tool["function"]["name"] for tool in GOOD["tools"]]
    return environment("pact_lightning.CodeToolEnvironment", codes=dict.fromkeys(names, code), tools=GOOD["tools"])


MISTAKES = {
    "two system messages": ({"messages": [SYSTEM, SYSTEM, USER]}, "field `messages`: may have one system message"),
    "a late system message": ({"messages": [USER, SYSTEM, USER]}, "field `messages`: may have one system message"),
    "a type that is a number": (
        with_parameters({"type": 5}),
        "field `tools[1].function.parameters`: is not a valid JSON Schema: type must be a name of a type, or a list of "
        "such names, got int",
    ),
    "a schema within one": (
        with_parameters({"properties": {"a": {"anyOf": [{"items": {"required": "b"}}]}}}),
        "is not a valid JSON Schema: properties.a.anyOf[0].items.required must be a list of names of arguments, "
        "got str",
    ),
    "properties that are a list": (with_parameters({"properties": []}), "properties must be an object of schemas"),
    "a snippet's syntax": (
        snippets("def x(:\n"),
        "field `environment.init_args`: the environment of task 'other' cannot be created: ValueError: the code of the "
        "tool 'birthplace_of' is not valid Python: invalid syntax (line 1)",
    ),
    "a snippet of a bomb's depth": (snippets("-" * 500_000 + "1"), "is not valid Python: it is nested too deeply"),
    "a module that raises": (
        environment("raising_env.Env"),
        "field `environment.class_path`: the environment class 'raising_env.Env' cannot be imported: it ends in "
        "RuntimeError: no licence",
    ),
    "a module that exits": (environment("leaving_env.Env"), "cannot be imported: it ends in SystemExit"),
    "a module of no syntax": (environment("broken_env.Env"), "it ends in SyntaxError: invalid syntax (broken_env.py"),
    "an unknown class": (environment("plain_env.Nope"), "the environment class 'plain_env.Nope' cannot be imported"),
    "no class": (environment("os.system", command="exit"), "'os.system' is not a class"),
    "no environment": (environment("plain_env.NoReset"), "has no method reset"),
    "an unknown argument": (
        environment("plain_env.Env", nope=1),
        "the environment of task 'other' cannot be created: TypeError: Env.__init__() got an unexpected keyword",
    ),
    "an argument that raises": (environment("plain_env.Env", number=7), "cannot be created: KeyError: 'seven'"),
    "an argument that exits": (environment("plain_env.Env", number=8), "cannot be created: SystemExit: 3"),
    "a wrong argument of a class used before": (
        environment("pact_lightning.BundledWorld", split="holiday", index=0),
        "cannot be created: ValueError: the bundled world has no split 'holiday'",
    ),
}


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs a command; gives its exit status and what it says of line 2 of the file."""

    def never(config):
        raise AssertionError("the policy was loaded")

    monkeypatch.setattr(pact_lightning.training.policy_module, "load_policy", never)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        text = capsys.readouterr()
        said = [line.removeprefix("error: ") for line in (text.out + text.err).splitlines()]
        return stopped.value.code, [line for line in said if "line 2: " in line]

    return run


@pytest.mark.parametrize("name", MISTAKES)
def test_both_tell_a_mistake_in_the_same_sentence(tmp_path, told, name):
    changes, sentence = MISTAKES[name]
    path = tmp_path / "tasks.jsonl"
    record = {key: value for key, value in GOOD.items() if key != "trace"} | {"id": "other"} | changes
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(record)}\n")
    source = {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": str(path)}}
    validated = told("tasks", "validate", str(path))
    fitted = told("fit", "-c", saved(tmp_path, {"data.init_args.train": source}))
    assert (validated[0], fitted[0]) == (1, 2)
    assert validated[1] == fitted[1]
    assert len(fitted[1]) == 1
    assert fitted[1][0].startswith(f"{path}, line 2: field `")
    assert sentence in fitted[1][0]


class Own:
    """A source that checks nothing."""

    def load(self) -> list[Task]:
        task = make_task("train", 1)
        return [task, object()]


def test_tasks_of_a_source_are_checked_alike(tmp_path, told, capsys):
    path = f"{__name__}.Own"
    for command in (
        ["tasks", "validate", "--source", path],
        ["fit", "-c", saved(tmp_path, {"data.init_args.train": {"class_path": path}})],
    ):
        with pytest.raises(SystemExit):
            main(command)
        text = capsys.readouterr()
        assert "Own, task 1: field `(the task)`: must be a pact_lightning.Task, got object" in text.out + text.err

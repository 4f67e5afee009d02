"""Tasks that leave their tools to the environment, and the command that checks environments."""

import json
from typing import ClassVar

import pytest
from function_tools import zebra
from transformers.utils import get_json_schema

from pact_lightning.cli.main import main
from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.tasks.record import task_from_json
from pact_lightning.utils.errors import TaskFieldError, TaskFileError

FUNCTIONS = "pact_lightning.FunctionEnvironment"


class Asked:
    """Counts how often it is made, asked and closed."""

    log: ClassVar[list] = []

    def __init__(self, number=1):
        self.number = number
        self.log.append("made")

    @property
    def tools(self):
        self.log.append("asked")
        if self.number < 0:
            raise RuntimeError("out of order")
        return [get_json_schema(zebra)] * self.number if self.number else "zebra"

    def reset(self, task, seed):
        self.log.append("reset")

    def call(self, name, arguments):
        self.log.append("called")

    def close(self):
        self.log.append("closed")


class Unfinished:
    tools = ()


def record(name="t", class_path=FUNCTIONS, calls=(), **init_args):
    return {
        "id": name,
        "messages": [{"role": "user", "content": "Go."}],
        "environment": {"class_path": class_path, "init_args": init_args},
        "reference": {"calls": list(calls)},
    }


def asked(name="t", **init_args):
    return record(name, f"{__name__}.Asked", **init_args)


def lines(path, *records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def test_tools_left_out_are_the_environment_s_and_are_written_out():
    task = task_from_json(record(functions=["function_tools.zebra"]))
    assert task.prompt.tools == (get_json_schema(zebra),)


def test_each_environment_of_a_file_is_asked_once_and_closed(tmp_path):
    Asked.log.clear()
    path = lines(tmp_path / "tasks.jsonl", asked("a"), asked("b"), asked("c", number=1), asked("d"))
    tasks = JsonlTasks(path).load()
    assert Asked.log == ["made", "asked", "closed"] * 2
    assert {len(task.prompt.tools) for task in tasks} == {1}
    again = tmp_path / "again.jsonl"
    write_jsonl(again, tasks)
    assert JsonlTasks(again).load() == tasks
    assert len(Asked.log) == 6


def test_listed_tools_are_not_asked_for():
    Asked.log.clear()
    assert task_from_json({**asked(number=-1), "tools": []}).prompt.tools == ()
    assert Asked.log == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            record(functions=["no.such"]),
            f"is missing, and {FUNCTIONS} cannot list its own tools: the function 'no.such'",
        ),
        (record(class_path="no.Class"), "is missing, and no.Class cannot list its own tools: the environment class"),
        (asked(number=-1), "cannot list its own tools: out of order"),
        (asked(number=0), "are not a list of schemas in OpenAI format"),
        (asked(unknown=1), "cannot list its own tools: "),
    ],
)
def test_an_environment_that_cannot_give_them_is_one_sentence(tmp_path, wrong, said):
    with pytest.raises(TaskFileError, match="line 2: field `tools`: ") as caught:
        JsonlTasks(lines(tmp_path / "tasks.jsonl", asked(), {**wrong, "id": "u"})).load()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_tools_of_one_name_are_refused_as_if_they_were_listed():
    with pytest.raises(TaskFieldError, match="'zebra' is listed twice"):
        task_from_json(asked(number=2))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no cell of a table is broken."""
    monkeypatch.setenv("COLUMNS", "300")


def check(capsys, *arguments):
    """Runs the command; gives its exit status and what it printed."""
    try:
        main(["check-env", *arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    return status, " ".join(printed.out.replace("│", " ").split()), printed.err


def test_the_command_finds_nothing(capsys, tmp_path):
    call = {"name": "zebra", "arguments": {"stripes": 3}}
    path = lines(
        tmp_path / "tasks.jsonl", *(record(str(n), functions="function_tools", calls=[call]) for n in range(5))
    )
    status, out, _ = check(capsys, FUNCTIONS, "--task", str(path))
    assert (status, out) == (0, f"{FUNCTIONS}, with 3 tasks: 0 errors, 0 warnings")
    assert check(capsys, FUNCTIONS, "--init_args", '{"functions": "function_tools"}')[0] == 0


def test_the_command_says_what_is_wrong_and_how_to_mend_it(capsys, tmp_path):
    call = {"name": "zebra", "arguments": {"stripes": "[bold]three[/bold]"}}
    path = lines(tmp_path / "tasks.jsonl", record(functions="function_tools", calls=[call]))
    status, out, _ = check(capsys, FUNCTIONS, "--task", str(path))
    assert status == 1
    assert "fix the call or the tool" in out
    assert "0 errors, 1 warning" in out
    assert check(capsys, FUNCTIONS, "--task", str(path), "--allow_warnings", "true")[0] == 0
    status, out, _ = check(capsys, f"{__name__}.Unfinished")
    assert status == 1
    assert "the environment does not have it" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "class_path"),
        (["Shop"], "error: class_path must be an import path such as my_tools.MyEnvironment, got 'Shop'"),
        (["no.Class"], "error: the environment class 'no.Class' cannot be imported"),
        ([FUNCTIONS], "missing 1 required positional argument: 'functions'"),
        ([FUNCTIONS, "--init_args", '{"functions": ["a"]}'], "error: the function 'a' cannot be imported"),
        ([FUNCTIONS, "--init_args", "3"], "init_args"),
        ([FUNCTIONS, "--task", "no.jsonl"], "there is no file no.jsonl"),
    ],
)
def test_the_command_s_own_mistakes_are_one_sentence(capsys, arguments, said):
    status, _, err = check(capsys, *arguments)
    assert status == 2
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_file_without_tasks_of_the_class_is_told(capsys, tmp_path):
    path = lines(tmp_path / "tasks.jsonl", asked())
    assert "has no task whose environment.class_path is" in check(capsys, FUNCTIONS, "--task", str(path))[2]


LATER = {"type": "function", "function": {"name": "zebra", "description": "Later.", "parameters": {"type": "object"}}}


def test_a_tool_that_a_later_user_turn_brings_is_not_there_from_the_start():
    asked_for = record(functions="function_tools") | {"follow_ups": [{"content": "And now?", "tools": [LATER]}]}
    prompt = task_from_json(asked_for).prompt
    assert prompt.tool_names_after(0) == ("ant",)
    assert prompt.tool_names_after(1) == ("ant", "zebra")


def picky(number: int) -> int:
    """Takes one number only.

    Args:
        number: The number.
    """
    if number != 77:
        raise ValueError("only 77 will do")
    return number


def test_a_tool_that_works_in_one_task_is_not_held_against_another(capsys, tmp_path):
    call = {"name": "picky", "arguments": {"number": 77}}
    functions = [f"{__name__}.picky"]
    without = lines(tmp_path / "without.jsonl", record("a", functions=functions), record("b", functions=functions))
    status, out, _ = check(capsys, FUNCTIONS, "--task", str(without))
    assert status == 1
    assert "every call that its schema allows failed" in out
    with_one = lines(
        tmp_path / "one.jsonl", record("a", functions=functions, calls=[call]), record("b", functions=functions)
    )
    status, out, _ = check(capsys, FUNCTIONS, "--task", str(with_one))
    assert (status, out) == (0, f"{FUNCTIONS}, with 2 tasks: 0 errors, 0 warnings")

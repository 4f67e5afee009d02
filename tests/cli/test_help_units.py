"""The help: every number says what it counts or measures, every option of a command what holds without it."""

import argparse
import dataclasses
import importlib
import inspect
import re

import jsonargparse
import pytest
from docstring_parser import parse

import pact_lightning as pact
from pact_lightning import _HOMES
from pact_lightning.cli.command_table import COMMANDS

UNITS = re.compile(
    r"token|second|phase|rollout|prompt|step|batch|epoch|turn|task|row|trace|call|character|attempt|request|index|cell|"
    r"MiB|GiB|GB|TFLOP/s|nats|price|norm|seed|port|rank|share|probability|weight|coefficient|temperature|rate|ratio|"
    r"discount|cost|level|strength|decay|dropout|scaled|added|number of|0 to 1|\(0, 1\]|``lambda",
    re.I,
)
NUMBER = re.compile(r"\b(int|float)\b")
WITHOUT = re.compile(r"none|null|default", re.I)
DEFAULT = re.compile(r"default|instead of|required", re.I)


def described(cls):
    """What the docstrings of a class and its bases say of each argument."""
    return {
        name.strip(): found.description or ""
        for base in reversed(cls.__mro__)
        for source in (base.__doc__, base.__dict__.get("__init__") and base.__init__.__doc__)
        for found in parse(source or "").params
        for name in found.arg_name.split(",")
    }


CLASSES = {
    name: made
    for name in _HOMES
    if inspect.isclass(made := getattr(pact, name))
    and "types." not in made.__module__
    and (dataclasses.is_dataclass(made) or "__init__" in made.__dict__)
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_init_arg_is_described_and_every_number_has_its_unit(name):
    said = described(CLASSES[name])
    given = inspect.signature(CLASSES[name]).parameters.values()
    known = [each for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    assert [each.name for each in known if not said.get(each.name)] == []
    numbers = [each for each in known if NUMBER.search(str(each.annotation))]
    assert [(each.name, said[each.name]) for each in numbers if not UNITS.search(said[each.name])] == []
    optional = [each.name for each in numbers if each.default is None]
    assert [(each, said[each]) for each in optional if not WITHOUT.search(said[each])] == []


class Parser(Exception):
    """The parser of a command, taken as it begins to parse."""


def parser_of(command, monkeypatch):
    def caught(self, *args, **kwargs):
        raise Parser(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", caught)
        patch.setattr(jsonargparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(Parser) as found:
            importlib.import_module(COMMANDS[command].module).main(["x"])
    return found.value.args[0]


def actions(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action._name_parser_map.values():
                yield from actions(inner)
        elif action.option_strings and not isinstance(action, argparse._HelpAction):
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_says_its_unit_and_what_holds_without_it(command, monkeypatch):
    found = list(actions(parser_of(command, monkeypatch)))
    assert found
    for action in found:
        said = f"{action.option_strings[0]}: {action.help}"
        assert action.help, said
        if NUMBER.search(str(getattr(action, "_typehint", None) or action.type)):
            assert UNITS.search(said), said
        if type(action) is argparse._StoreAction and not action.required:
            assert DEFAULT.search(action.help), said

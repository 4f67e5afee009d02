"""Errors and functions at a command line.

:func:`error_sentence` makes one sentence of an error. :func:`run` turns typed functions into a command: their
parameters are its options, their docstrings its help.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentError, auto_cli

from pact_lightning.cli.nearest import remedy
from pact_lightning.cli.yaml_loader import check_all_yaml
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.utils.imports import import_path, new_path

_KEY = re.compile(r'Parser key "(.+)":')
_CLASS_PATH = re.compile(r"Problem with given class_path '(.+)':")
_OWN_PATH = re.compile(r"\bpact_lightning(?:\.\w+){2,}")
_CHOICE = re.compile(r"^Expected a typing\.Literal\[(.+?)\]")
_TYPE = re.compile(r"^Expected a <class '(.+?)'>")
_PROTOCOL = re.compile(r"Import path (?:(\S+) )?does not implement protocol (\w+)")
_NEEDS = {
    "TaskSource": "{0} is no task source: name a class with a method load() without further arguments, which returns "
    "pact_lightning.Task objects (type hints are not needed)"
}
"""What a class must have, by the name of the protocol."""
_OTHER = "{0} does not implement protocol {1}: its methods need the arguments and type hints of pact_lightning.{1}"
_NO_REASON = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")

Functions = Callable[..., Any] | Mapping[str, Callable[..., Any]]


def run(functions: Functions, command: str, arguments: Sequence[str]) -> None:
    """Parse the arguments and call the function.

    Wrong input ends in one sentence and exit status 2, a server that stays away in one sentence and exit status 1. An
    ``int`` that the function returns is the exit status.

    Args:
        functions: One function, or several by the name of their subcommand. Typed, with Google docstrings.
        command: Words in front of the arguments, for the help texts.
        arguments: The arguments.
    """
    check_all_yaml()
    components: Any = dict(functions) if isinstance(functions, Mapping) else functions
    try:
        status = auto_cli(
            components, args=list(arguments), prog=command, exit_on_error=False, as_positional=True, fail_untyped=True
        )
    except (ValueError, OSError, ImportError, TypeError, ArgumentError) as error:
        end(error, 2)
    except EnvironmentUnavailableError as error:
        end(error, 1)
    if isinstance(status, int) and status:
        sys.exit(status)


def end(error: Exception, status: int) -> NoReturn:
    """Print an error as one sentence and exit."""
    print(f"error: {error_sentence(error)}", file=sys.stderr)  # noqa: T201  # the command's one sentence
    sys.exit(status)


def error_sentence(error: Exception) -> str:
    """Return the field and the mistake, without jsonargparse's listing of every type and value that it tried."""
    sentence = _parser_sentence(str(error)) or type(error).__name__
    for path in dict.fromkeys(_OWN_PATH.findall(str(error))):
        hint = new_path(path)
        if hint and hint not in sentence and not _imports(path):
            return sentence + hint
    return sentence


def _parser_sentence(text: str) -> str:
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    if not any(_KEY.match(line) or line.startswith(_NO_REASON) for line in lines):
        return " ".join(lines) + (remedy(lines[0], None) if lines else "")
    keys: list[str] = []
    of_class: str | None = None
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        if key := _KEY.match(line):
            keys.append(key[1])
        elif class_path := _CLASS_PATH.match(line):
            of_class, where = class_path[1], f" ({class_path[1]})"
            keys = [*keys[:-1], keys[-1] + where] if keys else [where.strip()]
        elif line.startswith("Expected a path but") and following.startswith(_NO_REASON[0]):
            continue  # a class was given, which a file of its arguments might have been; why it is none comes next
        elif not line.startswith(_NO_REASON):
            given = next((rest for rest in lines[number:] if rest.startswith("Given value: ")), "")
            value = given.removeprefix("Given value: ")
            got = f". Got value: {value}" if line.startswith("Expected a <") else ""
            said = _plain(f"{line}{got if 'Got value' not in line else ''}", value) + remedy(line, of_class)
            return f"{'.'.join(keys)}: {said}".removeprefix(": ")
    return " ".join(lines)


def _plain(line: str, value: str) -> str:
    """Say what is expected in words, not by Python's names of types."""
    line = _PROTOCOL.sub(lambda found: _NEEDS.get(found[2], _OTHER).format(found[1] or value, found[2]), line)
    return _TYPE.sub(r"Expected a value of type \1", _CHOICE.sub(r"Expected one of \1", line))


def _imports(path: str) -> bool:
    try:
        import_path(path, "name")
    except ImportError:
        return False
    return True

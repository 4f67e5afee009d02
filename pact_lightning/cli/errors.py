"""One sentence out of an error, for people at a command line.

Runs a command line made of functions: their parameters are its options, their docstrings its help.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, auto_cli

from pact_lightning.environments.protocol import EnvironmentUnavailableError

_KEY = re.compile(r'Parser key "(.+)":')
_CLASS_PATH = re.compile(r"Problem with given class_path '(.+)':")
_CHOICE = re.compile(r"^Expected a typing\.Literal\[(.+?)\]")
_TYPE = re.compile(r"^Expected a <class '(.+?)'>")
_NO_REASON = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")


def error_sentence(error: Exception) -> str:
    """Where and what is wrong, without the parser's listing of every type it tried and every value it was given."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    if not any(_KEY.match(line) or line.startswith(_NO_REASON) for line in lines):
        return " ".join(lines) or type(error).__name__
    keys: list[str] = []
    for number, line in enumerate(lines):
        if key := _KEY.match(line):
            keys.append(key[1])
        elif class_path := _CLASS_PATH.match(line):
            where = f" ({class_path[1]})"
            keys = [*keys[:-1], keys[-1] + where] if keys else [where.strip()]
        elif not line.startswith(_NO_REASON):
            given = next((rest for rest in lines[number:] if rest.startswith("Given value: ")), "")
            got = f". Got value: {given.removeprefix('Given value: ')}" if line.startswith("Expected a <") else ""
            said = _plain(f"{line}{got if 'Got value' not in line else ''}")
            return f"{'.'.join(keys)}: {said}".removeprefix(": ")
    return " ".join(lines)


def _plain(line: str) -> str:
    """What is expected, in words rather than in Python's names of types."""
    return _TYPE.sub(r"Expected a value of type \1", _CHOICE.sub(r"Expected one of \1", line))


Functions = Callable[..., Any] | Mapping[str, Callable[..., Any]]


def run(functions: Functions, command: str, arguments: Sequence[str]) -> None:
    """Parses the arguments and calls the function; wrong input ends in one sentence and exit status 2.

    A server that stays away ends it too, with exit status 1.

    A function that returns an ``int`` says by it how the process ends; 0 is success.

    Args:
        functions: One function, or several by the name of their subcommand. Typed, with Google docstrings.
        command: What stands before the arguments, for the help texts.
        arguments: The arguments.
    """
    components: Any = dict(functions) if isinstance(functions, Mapping) else functions
    try:
        status = auto_cli(
            components, args=list(arguments), prog=command, exit_on_error=False, as_positional=True, fail_untyped=True
        )
    except (ValueError, OSError, ImportError, TypeError, ArgumentError) as error:
        print(f"error: {error_sentence(error)}", file=sys.stderr)  # noqa: T201  # the command's one sentence
        sys.exit(2)
    except EnvironmentUnavailableError as error:
        print(f"error: {error_sentence(error)}", file=sys.stderr)  # noqa: T201  # no mistake here, so no traceback
        sys.exit(1)
    if isinstance(status, int) and status:
        sys.exit(status)

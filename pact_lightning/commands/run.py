"""Runs a command line made of functions: their parameters are its options, their docstrings its help."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, auto_cli

from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.error_sentence import error_sentence

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

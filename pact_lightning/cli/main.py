"""The ``pact-lightning`` command."""

import argparse
import gc
import importlib
import logging
import sys
from pathlib import Path

from pact_lightning.cli.command_table import COMMANDS, DESCRIPTION, VERBS


def main(args: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends in one sentence and exit status 2.

    Lightning takes seconds to import, so that the other commands and the help do without it.

    Args:
        args: Arguments instead of those of the process.
    """
    # bitsandbytes offers a faster CPU kernel on import, for a package that is not ours to install.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Environments, task sources and rewards of one's own are named by import path; they mostly lie where the command
    # is run.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    given = sys.argv[1:] if args is None else args
    if not given or given[0] in ("-h", "--help"):
        _help_parser().print_help(sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    if given[0] in COMMANDS:
        importlib.import_module(COMMANDS[given[0]].module).main(given[1:])
        return
    if given[0] not in VERBS and not given[0].startswith("-"):
        known = ", ".join([*VERBS, *COMMANDS])
        print(f"error: there is no command {given[0]!r}; the commands are {known}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    # Imports make hundreds of thousands of objects that live to the end: looking through them again and again costs
    # a fifth of the start.
    gc.disable()
    from pact_lightning.cli.fit import run_lightning

    gc.freeze()
    gc.enable()
    run_lightning(args)


def _help_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning",
        description=DESCRIPTION,
        epilog="pact-lightning COMMAND --help lists a command's options; fit, validate, test and predict take them "
        "from a recipe as well, and print what is then in force by --print_config",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in (VERBS | {name: command.summary for name, command in COMMANDS.items()}).items():
        commands.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    main()

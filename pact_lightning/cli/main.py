"""The ``pact-lightning`` command."""

import argparse
import gc
import importlib
import logging
import sys
from pathlib import Path

from pact_lightning.cli.command_table import COMMANDS, DESCRIPTION, VERBS


def main(args: list[str] | None = None) -> None:
    """Run the command line; wrong input ends in one sentence and exit status 2.

    Args:
        args: Arguments in place of those of the process.
    """
    # bitsandbytes recommends a package with a faster CPU kernel on import.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # A user's own environments, task sources and rewards mostly lie where the command is run.
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
    # Lightning takes seconds to import, so the help and the other commands do without it. Imports make hundreds of
    # thousands of objects that live to the end: without the garbage collector they take a fifth less time.
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
    summaries = VERBS | {name: command.summary for name, command in COMMANDS.items()}
    for name, summary in summaries.items():
        commands.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    main()

"""The ``pact-lightning`` command."""

import importlib
import logging
import sys
from pathlib import Path

from pact_lightning.commands import COMMANDS


def main(args: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends in one sentence and exit status 2.

    Lightning takes seconds to import, so that the other commands do without it.

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
    if given and given[0] in COMMANDS:
        importlib.import_module(COMMANDS[given[0]]).main(given[1:])
        return
    from pact_lightning.lightning_cli import run_lightning

    run_lightning(args)


if __name__ == "__main__":
    main()

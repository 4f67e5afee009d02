"""The ``pact-lightning`` command."""

import importlib
import logging
import sys

from pact_lightning.commands import COMMANDS


def main(args: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends in one sentence and exit status 2.

    Lightning takes seconds to import, so that the other commands do without it.

    Args:
        args: Arguments instead of those of the process.
    """
    # bitsandbytes offers a faster CPU kernel on import, for a package that is not ours to install.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    given = sys.argv[1:] if args is None else args
    if given and given[0] in COMMANDS:
        importlib.import_module(COMMANDS[given[0]]).main(given[1:])
        return
    from pact_lightning.lightning_cli import run_lightning

    run_lightning(args)


if __name__ == "__main__":
    main()

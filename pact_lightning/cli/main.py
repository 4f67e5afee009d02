"""The ``pact-lightning`` command."""

import argparse
import gc
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.cli.command_table import COMMANDS, DESCRIPTION, VERBS
from pact_lightning.cli.stand_ins import NAMES, only_prints, stand_ins


def main(args: list[str] | None = None) -> None:
    """Run the command line; wrong input ends in one sentence and exit status 2.

    Args:
        args: Arguments in place of those of the process.
    """
    # bitsandbytes recommends a package with a faster CPU kernel on import.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    given = sys.argv[1:] if args is None else args
    _find_own_modules(given)
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
    _ask_for_same_bits()
    # A program that calls this function may go on to train.
    if args is None and only_prints(given):
        with stand_ins(NAMES):
            importlib.import_module("lightning.pytorch")
    from pact_lightning.cli.fit import run_lightning

    gc.freeze()
    gc.enable()
    run_lightning(args)


def _find_own_modules(arguments: Sequence[str]) -> None:
    """Let the user's modules be found, which mostly lie where the command is run.

    They stand behind all others: a ``json.py`` or ``rich.py`` beside a task file replaces nothing. Commands that run
    nothing of a file find no module there at all.

    Args:
        arguments: The command line.
    """
    folder = str(Path.cwd())
    run_by_path = getattr(sys.modules["__main__"], "__spec__", None) is not None
    if run_by_path and not sys.flags.safe_path and sys.path[:1] == [folder]:
        del sys.path[0]  # `python -m` puts it there
    if folder not in sys.path and not {"-h", "--help", "--environments"} & {word.split("=")[0] for word in arguments}:
        sys.path.append(folder)


def _ask_for_same_bits() -> None:
    """Ask MKL, which reads this as torch is loaded, for products whose bits do not depend on the number of threads [D].

    That number follows what other processes leave free (:class:`~pact_lightning.policy.threads.FreeThreads`), and a
    resumed run shall end with the same bits all the same. Intel's processors with AVX2 or AVX-512 honour it.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return
    widest = next((name for name in ("avx512f", "avx2") if name in flags), None)
    if widest is not None:
        os.environ.setdefault("MKL_CBWR", f"{widest.upper().removesuffix('F')},STRICT")


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

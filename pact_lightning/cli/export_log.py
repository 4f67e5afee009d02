"""Command ``pact-lightning export-log``: the rollouts of a run for another tool."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.cli.errors import end
from pact_lightning.utils.text import counted


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``export-log``.
    """
    parser = argparse.ArgumentParser(
        prog="pact-lightning export-log",
        description="Writes the rollouts of a run as logs of another tool. Of Inspect, each file in trajectories/ "
        "becomes a log that `inspect view` opens, with the scores of each rollout.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/quickstart/version_0")
    parser.add_argument("--to", choices=["inspect"], default="inspect", help="the tool (default: inspect)")
    parser.add_argument("--output", type=Path, help="where the logs go (default: the folder inspect in the run's)")
    given = parser.parse_args(list(arguments))
    from pact_lightning.compare.inspect_logs import write_inspect_logs

    folder = given.output or given.run / "inspect"
    try:
        written, damaged = write_inspect_logs(given.run, folder)
    except (ValueError, OSError, ImportError) as error:
        end(error, 2)
    left_out = f"; {counted(damaged, 'line')} could not be read and are left out" if damaged else ""
    print(f"{counted(len(written), 'log')} in {folder}{left_out}; look at them with: inspect view --log-dir {folder}")  # noqa: T201

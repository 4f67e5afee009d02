"""Row ``startup``: seconds until the command answers, with the imports that it needs."""

import subprocess
import sys
from functools import partial

from benchmarks.row import Rounds, Row, alternate, spreads

_COMMANDS = {
    "--help": (["--help"], 2.0),
    "fit --print_config": (["fit", "-c", "recipes/quickstart.yaml", "--print_config"], 2.5),
}
"""Arguments, and the seconds that the command may take."""


def run(rounds: Rounds) -> Row:
    """Time whole processes from the root of the checkout, with files in the page cache."""
    timings = alternate({name: partial(_run, arguments) for name, (arguments, _) in _COMMANDS.items()}, rounds)
    cases = {name: (timings[name].median, limit) for name, (_, limit) in _COMMANDS.items()}
    slowest, limit = max(cases.values(), key=lambda case: case[0] / case[1])
    settings = {"unit": "s", "cases": cases, "peer_is": "the limits", "spread": spreads(timings)}
    return Row("startup", slowest, limit, slowest / limit, 1.0, "at most", timings["--help"].rounds, settings)


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pact_lightning.cli.main", *arguments], check=True, capture_output=True)

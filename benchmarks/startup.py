"""Row ``startup``: seconds until the command answers, with the imports that it needs."""

import subprocess
import sys
from functools import partial

from benchmarks.row import Row, alternate, spreads

HELP_LIMIT, CONFIG_LIMIT = 2.0, 6.0
_COMMANDS = {
    "--help": ["--help"],
    "fit --print_config": ["fit", "-c", "recipes/quickstart.yaml", "--print_config"],
}


def run(repeats: int) -> Row:
    """Time whole processes from the root of the checkout, with files in the page cache."""
    timings = alternate({name: partial(_run, arguments) for name, arguments in _COMMANDS.items()}, repeats)
    told, config = timings.values()
    return Row(
        bench="startup",
        ours=[round(told.median, 3), round(config.median, 3)],
        peer=[HELP_LIMIT, CONFIG_LIMIT],
        ratio=round(max(told.median / HELP_LIMIT, config.median / CONFIG_LIMIT), 3),
        goal=1.0,
        goal_is="at most",
        repeats=repeats,
        settings={"unit": "s", "commands": list(_COMMANDS), "peer_is": "the limits", "spread": spreads(timings)},
    )


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pact_lightning.cli.main", *arguments], check=True, capture_output=True)

"""Row ``update_vs_trl_long``: ``update_vs_trl`` with a prompt and a trace of 4,096 tokens, where attention decides."""

from benchmarks.row import Rounds, Row
from benchmarks.update_case import HIDDEN_256, Lengths
from benchmarks.update_vs_trl import measure


def run(rounds: Rounds) -> Row:
    """Measure the row at hidden 256 and three layers, so that a round of both sides takes less than 40 seconds."""
    return measure("update_vs_trl_long", HIDDEN_256, rounds, Lengths(prompt=4096, trace=4096, response=512))

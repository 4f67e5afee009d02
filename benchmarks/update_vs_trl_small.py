"""Row ``update_vs_trl_small``: ``update_vs_trl`` with 2 M parameters, where attention weighs more."""

from benchmarks.row import Rounds, Row
from benchmarks.update_case import TWO_MILLION
from benchmarks.update_vs_trl import measure


def run(rounds: Rounds) -> Row:
    """Measure the row at hidden 128."""
    return measure("update_vs_trl_small", TWO_MILLION, rounds)

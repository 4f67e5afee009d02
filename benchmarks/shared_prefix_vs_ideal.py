"""Row ``shared_prefix_vs_ideal``: speed-up of the shared prefix over plain rows, as a share of the ideal one."""

import tempfile
from pathlib import Path

import torch

from benchmarks.flops import update_flops
from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.update_case import HIDDEN_512, THREADS, UpdateCase, shape_settings


def run(rounds: Rounds) -> Row:
    """Divide the ratio of seconds, rows by shared prefix, by the ratio of their operations."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(HIDDEN_512, Path(folder))
        shared, ours = case.ours(trace=True)
        rows, peer = case.ours(trace=True, packing="rows")
        timings = alternate({"ours": ours, "peer": peer}, rounds)
        packs = {"ours": case.packs(shared), "peer": case.packs(rows)}
        flops = {name: update_flops(HIDDEN_512, found, case.head_tokens(shared)) for name, found in packs.items()}
    ideal = flops["peer"] / flops["ours"]
    speedup = timings["peer"].median / timings["ours"].median
    return Row(
        "shared_prefix_vs_ideal",
        timings["ours"].median,
        timings["peer"].median,
        speedup / ideal,
        0.75,
        "at least",
        timings["ours"].rounds,
        {
            **shape_settings(case),
            "speedup": speedup,
            "ideal_speedup": ideal,
            "tokens": {name: sum(pack.tokens for pack in found) for name, found in packs.items()},
            "spread": spreads(timings),
        },
    )
